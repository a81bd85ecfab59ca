package broker

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
)

// Registry gives backends by name; all.Backends makes the real one.
type Registry map[string]backends.Backend

// Broker asks backends for nodes. It is safe for concurrent use.
type Broker struct {
	backends Registry
	log      *slog.Logger
}

// New wraps every backend of the registry: as many changes at a time as it takes, not too
// often, with more tries where trying again helps.
func New(r Registry, log *slog.Logger) *Broker {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	b := &Broker{backends: Registry{}, log: log}
	for name, be := range r {
		b.backends[name] = wrap(be, log.With("backend", name))
	}
	return b
}

// wrap is the one place where wrappers are stacked. Innermost is what touches the
// backend: each try of a retry waits its turn anew, so that a call that backs off keeps
// nobody waiting.
func wrap(be backends.Backend, log *slog.Logger) backends.Backend {
	c := be.Capabilities()
	be = &gate{Backend: be, turns: make(chan struct{}, max(1, c.Parallel))}
	if c.Every > 0 {
		be = &limited{Backend: be, every: c.Every}
	}
	return &retrying{Backend: be, log: log, first: firstPause, tries: cmp.Or(c.Tries, maxTries)}
}

// Close closes every backend; what runs runs on.
func (b *Broker) Close() error {
	var first error
	for _, be := range b.backends {
		if err := be.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (b *Broker) backend(p wire.Pool) (backends.Backend, error) {
	be, ok := b.backends[p.Backend]
	if !ok {
		return nil, errs.New(errs.Unbuilt, "pool %s: there is no backend %q in this version", p.Name, p.Backend).
			Hint("there are: %s", strings.Join(slices.Sorted(maps.Keys(b.backends)), ", "))
	}
	return be, nil
}

// options decodes what the pool carries for its backend.
func options(p wire.Pool) (backends.Options, error) {
	o := backends.Options{}
	if len(p.Options) == 0 {
		return o, nil
	}
	if err := wire.Unmarshal(p.Options, &o); err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "the options of pool %s", p.Name)
	}
	return o, nil
}

// Check says everything that is wrong with a pool, without touching anything.
func (b *Broker) Check(p wire.Pool) []backends.Fault {
	be, err := b.backend(p)
	if err != nil {
		return []backends.Fault{{Key: "backend", Msg: err.Error()}}
	}
	o, err := options(p)
	if err != nil {
		return []backends.Fault{{Msg: err.Error()}}
	}
	faults := be.Check(o)
	if len(faults) > 0 {
		return faults
	}
	want, key := max(p.Min, p.Max), "max"
	if p.Max < p.Min {
		key = "min"
	}
	if l, ok := backends.As[nodesKey](be); ok {
		key = l.NodesKey()
	}
	if n, why := b.limit(be, p, o); n > 0 && want > n {
		faults = append(faults, backends.Fault{Key: key, Msg: why})
	}
	return faults
}

// nodesKey is implemented by backends whose number of nodes comes from a key of their own.
type nodesKey interface{ NodesKey() string }

// Limit is the most nodes that a pool can ever have and why; 0 = unknown.
func (b *Broker) Limit(p wire.Pool) (int, string) {
	be, err := b.backend(p)
	if err != nil {
		return 0, ""
	}
	o, err := options(p)
	if err != nil {
		return 0, ""
	}
	return b.limit(be, p, o)
}

func (b *Broker) limit(be backends.Backend, p wire.Pool, o backends.Options) (int, string) {
	if bd, ok := backends.As[backends.Bounder](be); ok {
		return bd.Bound(o, p.Resources)
	}
	if f := be.Capabilities().Limit; f != nil {
		return f(o)
	}
	return 0, ""
}

// fill completes a request with what its pool says.
func fill(p wire.Pool, r backends.Request) (backends.Request, error) {
	if len(r.Nodes) == 0 || len(r.Nodes) != len(r.Epochs) {
		return r, errs.New(errs.Internal, "a request for %d nodes with %d epochs", len(r.Nodes), len(r.Epochs))
	}
	if r.Token == "" {
		return r, errs.New(errs.Internal, "a request without a token")
	}
	o, err := options(p)
	if err != nil {
		return r, err
	}
	r.Pool, r.Options = p.Name, o
	if r.Resources == nil {
		r.Resources = p.Resources
	}
	r.Setup, r.Env, r.Python, r.Container = p.Setup, p.Env, p.Python, p.Container
	if r.Labels == nil {
		r.Labels = p.Labels
	}
	if r.Share == "" {
		r.Share = p.Share
	}
	return r, nil
}

// Submit asks for the nodes of r. With a token that was submitted before it gives what
// that made.
func (b *Broker) Submit(ctx context.Context, p wire.Pool, r backends.Request) ([]backends.Alloc, error) {
	be, err := b.backend(p)
	if err != nil {
		return nil, err
	}
	if r, err = fill(p, r); err != nil {
		return nil, err
	}
	if n := be.Capabilities().MaxPerCall; n > 0 && len(r.Nodes) > n {
		return nil, errs.New(errs.Invalid, "pool %s: %d nodes in one request, backend %s takes %d", p.Name, len(r.Nodes), p.Backend, n)
	}
	allocs, err := be.Submit(ctx, r)
	if err != nil && len(r.Places) == 0 { // a machine names itself
		err = errs.Wrap(errs.Unknown, err, "pool %s", p.Name)
	}
	if err != nil {
		return nil, err
	}
	return allocs, nil
}

// Find looks submissions up by token.
func (b *Broker) Find(ctx context.Context, p wire.Pool, cluster string, tokens []string) (map[string][]backends.Alloc, error) {
	be, err := b.backend(p)
	if err != nil {
		return nil, err
	}
	return be.Find(ctx, cluster, tokens)
}

// Status asks for many allocations at once; the answer has one entry per handle, in order.
func (b *Broker) Status(ctx context.Context, p wire.Pool, handles [][]byte) ([]backends.Status, error) {
	be, err := b.backend(p)
	if err != nil || len(handles) == 0 {
		return nil, err
	}
	st, err := be.Status(ctx, handles)
	if err == nil && len(st) != len(handles) {
		err = errs.New(errs.Internal, "backend %s answered %d of %d questions", p.Backend, len(st), len(handles))
	}
	return st, err
}

// Cancel ends allocations; waiting: but for those that have begun, where the backend tells
// them apart. It may be repeated.
func (b *Broker) Cancel(ctx context.Context, p wire.Pool, handles [][]byte, waiting bool) error {
	be, err := b.backend(p)
	if err != nil || len(handles) == 0 {
		return err
	}
	if u, ok := backends.As[backends.Unasker](be); ok && waiting {
		return u.Unask(ctx, handles)
	}
	return be.Cancel(ctx, handles)
}

// DryRun writes exactly what Submit would start.
func (b *Broker) DryRun(p wire.Pool, r backends.Request, w io.Writer) error {
	be, err := b.backend(p)
	if err != nil {
		return err
	}
	if r.Token == "" {
		r.Token = "DRY-RUN"
	}
	if r, err = fill(p, r); err != nil {
		return err
	}
	return be.DryRun(r, w)
}

// pollEvery is how often a backend that does not tell by itself is asked.
const pollEvery = 2 * time.Second

// Watch sends the index of a handle whenever its Status should be asked again, until ctx
// ends: at once where the backend tells by itself, else after a look every two seconds.
// The receiver must go on receiving until Watch has returned.
func (b *Broker) Watch(ctx context.Context, p wire.Pool, handles [][]byte, changed chan<- int) error {
	be, err := b.backend(p)
	if err != nil {
		return err
	}
	if w, ok := backends.As[backends.Watcher](be); ok {
		return w.Watch(ctx, handles, changed)
	}
	last := make([]backends.AllocState, len(handles))
	tick := time.NewTicker(max(pollEvery, be.Capabilities().Every))
	defer tick.Stop()
	for {
		st, err := b.Status(ctx, p, handles)
		for i := range st {
			if err == nil && (st[i].State != last[i] || len(st[i].DeadNodes) > 0) {
				last[i] = st[i].State
				select {
				case changed <- i:
				case <-ctx.Done():
					return nil
				}
			}
		}
		if err != nil && ctx.Err() == nil {
			b.log.Warn("cannot ask a backend how its nodes are", "pool", p.Name, "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
