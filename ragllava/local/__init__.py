"""The embedded services and the workers of one machine: everything behind `ragllava up`.

home.py       the folders, passwords and the lock of one RAGLLAVA_HOME
ports.py      free ports, reserved until a server listens
processes.py  starting, finding and stopping processes
service.py    what the three servers have in common: adopt or start, wait until ready, stop
postgres.py, redis_server.py, seaweed.py    one server each
services.py   LocalServices: the three together
fleet.py      WorkerFleet: worker processes, restarted when they die
watchdog.py   the small program that ends the workers of a supervisor that was killed
"""
