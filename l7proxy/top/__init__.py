"""`l7proxy top`: a running l7proxy in a terminal, as the status page shows it in a browser.

    figures    numbers and names for people                      pure
    reading    what two readings of the admin server say together pure
    views      the tables: their columns, orders, filters        pure
    look       what the keys do                                  pure
    frame      a screen: text of lines, for any size             pure
    document   the same once: as text, as JSON for scripts       pure
    terminal   curses, and the thread that asks

Names come from strangers, and a terminal obeys what is printed to it: all of them go through
`figures.clean`.
"""
