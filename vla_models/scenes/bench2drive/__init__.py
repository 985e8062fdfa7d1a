"""Bench2Drive's routes: the leaderboard-2.0 XML of official files, and routes made from a seed where there is no file.

``scenario_types`` has the types with their parameters, ``route_files`` reads files, ``routes`` lays way points along the lanes,
``made_routes`` makes routes of one's own. Bench2Drive's own route file is CC BY-NC-ND: it is never bundled, the user gives its
path.
"""
