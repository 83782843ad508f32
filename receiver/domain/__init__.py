"""The rules: values in, values out. Nothing here touches a database, the network, a clock or a log."""
