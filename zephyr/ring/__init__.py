"""Where keys live: slots and the consistent-hash ring."""
