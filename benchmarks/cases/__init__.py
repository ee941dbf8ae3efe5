"""One benchmark a file: `cases(setting)` yields what is compared with peers, `curves(setting)` how cost grows."""
