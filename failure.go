package launcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// What can become of a task or an object, for errors.Is. A context that ends is
// context.Canceled or context.DeadlineExceeded, as everywhere.
var (
	ErrCancelled     = errors.New("launcher: the task was cancelled")
	ErrWorkerCrashed = errors.New("launcher: the process or the node that ran the task died")
	ErrLost          = errors.New("launcher: the object is lost and cannot be made again")
	ErrFull          = errors.New("launcher: the object memory is full")
	ErrUnschedulable = errors.New("launcher: no node can ever run the task")
	ErrReleased      = errors.New("launcher: the reference was released")

	ErrActorDied        = errors.New("launcher: the actor is dead")
	ErrActorUnavailable = errors.New("launcher: the actor died while the call may have been running, and is restarted")
	ErrActorExists      = errors.New("launcher: the name is that of another actor")
	ErrNoActor          = errors.New("launcher: no actor has the name")
	ErrPendingCalls     = errors.New("launcher: as many calls of the actor are open as MaxPendingCalls allows")
)

// sentinelOf says what the codes of docs/tasks.md are for errors.Is.
var sentinelOf = map[string]error{
	"cancelled": ErrCancelled, "worker_crashed": ErrWorkerCrashed, "node_died": ErrWorkerCrashed, "memory": ErrWorkerCrashed,
	"lost": ErrLost, "owner_died": ErrLost, "reconstruction": ErrLost, "full": ErrFull, "unschedulable": ErrUnschedulable,
	"actor_died": ErrActorDied, "actor_unavailable": ErrActorUnavailable, "actor_unschedulable": ErrUnschedulable,
}

// TaskError is how a task, or the object that it was to make, failed.
type TaskError struct {
	// Code is "task" when the function itself returned an error, raised or panicked;
	// else what happened to it: worker_crashed, node_died, memory, cancelled, lost,
	// owner_died, reconstruction, full, runtime_env, unschedulable, fenced, internal,
	// actor_died, actor_unavailable, actor_unschedulable.
	Code    string
	Message string
	Trace   string // of the panic, or the Python traceback
	Task    string // name
	Node    string
	PID     int
	Hints   []string // what to try
	causes  []error
}

// Error says what happened, and in which task.
func (e *TaskError) Error() string {
	if e.Task == "" {
		return e.Message
	}
	what := "task "
	if strings.HasPrefix(e.Code, "actor_") && e.Code != "actor_unavailable" { // that is a call's
		what = "actor "
	}
	return what + e.Task + ": " + e.Message
}

// Unwrap gives the package's sentinel of the Code and the registered errors that the
// function's error was.
func (e *TaskError) Unwrap() []error {
	if s := sentinelOf[e.Code]; s != nil {
		return append([]error{s}, e.causes...)
	}
	return e.causes
}

// registered are the errors that keep their identity on the wire, by text.
var registered = struct {
	sync.RWMutex
	list []error
}{list: []error{ErrCancelled, ErrWorkerCrashed, ErrLost, ErrFull, ErrUnschedulable, ErrReleased,
	ErrActorDied, ErrActorUnavailable, ErrActorExists, ErrNoActor, ErrPendingCalls, context.Canceled, context.DeadlineExceeded}}

// RegisterError makes errors.Is know these errors also when they come from a task in
// another process. Call it where they are declared, in every process of the program:
//
//	var ErrEmpty = errors.New("empty shard")
//
//	func init() { launcher.RegisterError(ErrEmpty) }
//
// They are known by their text, so no two may have the same.
func RegisterError(sentinels ...error) {
	registered.Lock()
	defer registered.Unlock()
	for _, s := range sentinels {
		if slices.ContainsFunc(registered.list, func(r error) bool { return r.Error() == s.Error() }) {
			panic(fmt.Sprintf("launcher: an error %q is registered already", s))
		}
		registered.list = append(registered.list, s)
	}
}

// retry marks an error that is worth another try.
type retry struct{ error }

func (r retry) Unwrap() error { return r.error }

// Retry makes a task that returns it run again while it has retries left. Without it an
// error that a function returns is its result: only the loss of a worker or node is
// tried again.
func Retry(err error) error {
	if err == nil {
		return nil
	}
	return retry{err}
}

// encodeFailure makes the value of a task that failed with err.
func encodeFailure(err error, code, trace, task, node string, pid int) []byte {
	var names []string
	registered.RLock()
	for _, s := range registered.list {
		if errors.Is(err, s) {
			names = append(names, s.Error())
		}
	}
	registered.RUnlock()
	w := sdk.Error{Code: code, Message: clip(err.Error()), Traceback: clip(trace), Task: task, Node: node, PID: pid, Hints: hintsOf(err)}
	if names != nil {
		w.Cause = names
	}
	return w.Encode()
}

// clip bounds a text of an error: all results of the task have it, in each frame.
func clip(s string) string {
	const most = 64 << 10
	if len(s) > most {
		return strings.ToValidUTF8(s[:most/2]+" [...] "+s[len(s)-most/2:], "?")
	}
	return s
}

// decodeFailure is the inverse.
func decodeFailure(b []byte) error {
	var w sdk.Error
	if err := wire.Unmarshal(b, &w); err != nil {
		return errs.Wrap(errs.Corrupt, err, "the failure of a task")
	}
	e := &TaskError{Code: w.Code, Message: w.Message, Trace: w.Traceback, Task: w.Task, Node: w.Node, PID: w.PID, Hints: w.Hints}
	names, _ := w.Cause.([]any)
	registered.RLock()
	defer registered.RUnlock()
	for _, s := range registered.list {
		if slices.Contains(names, any(s.Error())) {
			e.causes = append(e.causes, s)
		}
	}
	return e
}

// hintsOf collects what to try from an error of any kind.
func hintsOf(err error) []string {
	hints := errs.HintsOf(err)
	if t, ok := errors.AsType[*TaskError](err); ok {
		hints = append(hints, t.Hints...)
	}
	return hints
}

// explain renders an error for a terminal: error:, hint:, and the trace of the task.
func explain(err error) string {
	var b strings.Builder
	fmt.Fprintf(&b, "error: %s\n", err)
	for _, h := range hintsOf(err) {
		fmt.Fprintf(&b, "hint: %s\n", h)
	}
	if t, ok := errors.AsType[*TaskError](err); ok && t.Trace != "" {
		fmt.Fprintf(&b, "%s\n", strings.TrimRight(t.Trace, "\n"))
	}
	return b.String()
}
