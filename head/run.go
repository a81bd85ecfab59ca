package head

import "context"

func run(ctx context.Context, o Options) error { return nil }
