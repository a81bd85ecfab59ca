// Package launcher is the Go SDK: a Go program that runs on a launcher cluster, and what
// such programs say and ask.
//
// # Tasks and objects
//
// A function becomes a task by being registered, once, in a variable:
//
//	var Square = launcher.Func(square)
//
//	func square(ctx context.Context, x int) (int, error) { return x * x, nil }
//
//	func main() { launcher.Main(run) }
//
//	func run(ctx context.Context) error {
//		ref := Square.Submit(ctx, 12)    // runs somewhere in the cluster
//		v, err := ref.Get(ctx)           // 144
//		...
//	}
//
// Workers are the same binary, started again; it ships itself. A Ref stands for a value
// that is there or will be, and may be an argument of further tasks before it is. Put
// makes a value one; []byte and slices of numbers of more than 16 KiB are then shared by
// all processes of a node and not copied for each. Errors keep their identity: errors.Is
// finds ErrWorkerCrashed, ErrCancelled and their kin, and what RegisterError was told of.
// Tasks may submit tasks and wait for them.
//
// # Actors
//
// A value that lives in a process of its own, whose methods are called from anywhere, is
// an actor. Its constructor and its methods are registered like functions:
//
//	var (
//		Counter = launcher.Actor(newCounter)
//		Add     = launcher.Method((*counter).Add)
//	)
//
//	func newCounter(ctx context.Context, start int) (*counter, error)
//
//	func (c *counter) Add(ctx context.Context, n int) (int, error)
//
//	h, err := Counter.New(ctx, 10, launcher.ActorName("c"), launcher.MaxRestarts(3))
//	v, err := Add.Submit(ctx, h, 5).Get(ctx)         // 15
//
// The calls of one program begin in the order in which they were submitted, one at a time
// unless MaxConcurrency or ConcurrencyGroup say otherwise. A Handle may be an argument or
// a result; the actor ends with the last one, unless it is Detached. FindActor finds one
// by its name. Calls of an actor that is gone have ErrActorDied; ErrActorUnavailable those
// that it may have begun when it died, if it is restarted. MethodNamed calls actors of
// Python programs, and Python calls those of Go by launcher.get_actor.
//
// # Runs
//
// In a run, which launcher started with ranks, checkpoints and parameters of its own:
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
