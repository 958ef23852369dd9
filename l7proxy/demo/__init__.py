"""`python -m l7proxy.demo`: backends, the proxy, and real requests through it, with accounts.

`backends` and `websocket` are the built-in backends, `place` finds free ports, `proxy` runs
l7proxy, `plan` derives from the policy what is sent, `traffic` sends and checks it, and `show`
tells the story. Nothing else of l7proxy uses this package.
"""
