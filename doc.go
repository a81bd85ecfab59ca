// Package launcher is the Go SDK: what a Go program says and asks while it runs on a
// launcher cluster.
//
//	dir, step, err := launcher.Checkpoint(ctx)       // "" the first time
//	for epoch := int(step); epoch < 10; epoch++ {
//		...
//		leave, err := launcher.Report(ctx, launcher.Metrics{"loss": loss}, launcher.WithCheckpoint("ckpt"))
//		if leave.Now() {
//			os.Exit(launcher.Left)           // saved; launcher goes on elsewhere
//		}
//	}
//
// Outside a run the same program is rank 0 of 1, reports nothing and is never asked to
// leave. All waits are bounded: by the context, and by a bound of their own.
package launcher
