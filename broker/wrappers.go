package broker

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
)

const (
	firstPause = 100 * time.Millisecond
	maxPause   = 10 * time.Second
	maxTries   = 6 // 100 ms doubling: about six seconds until the caller hears of it
)

// gate lets so many changes at a time into a backend as it takes (Capabilities.Parallel).
// Questions (Status, Find) pass beside it: a slow submission must not hide a node's death.
type gate struct {
	backends.Backend
	turns chan struct{} // one for each change that is under way
}

func (s *gate) Unwrap() backends.Backend { return s.Backend }

func (s *gate) enter(ctx context.Context) error {
	select {
	case s.turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errs.Wrap(errs.Unknown, context.Cause(ctx), "waiting for an earlier call to the backend")
	}
}

func (s *gate) Submit(ctx context.Context, r backends.Request) ([]backends.Alloc, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer func() { <-s.turns }()
	return s.Backend.Submit(ctx, r)
}

func (s *gate) Cancel(ctx context.Context, handles [][]byte) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer func() { <-s.turns }()
	return s.Backend.Cancel(ctx, handles)
}

// limited keeps calls that reach a shared service apart.
type limited struct {
	backends.Backend
	every time.Duration

	mu   sync.Mutex
	next time.Time // when the next call may start; guarded by mu
}

func (l *limited) Unwrap() backends.Backend { return l.Backend }

// wait takes the next free moment and waits for it.
func (l *limited) wait(ctx context.Context) error {
	l.mu.Lock()
	at := time.Now()
	if l.next.After(at) {
		at = l.next
	}
	l.next = at.Add(l.every)
	l.mu.Unlock()
	return pause(ctx, time.Until(at), "waiting for a turn to ask the backend")
}

func (l *limited) Submit(ctx context.Context, r backends.Request) ([]backends.Alloc, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	return l.Backend.Submit(ctx, r)
}

func (l *limited) Find(ctx context.Context, cluster string, tokens []string) (map[string][]backends.Alloc, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	return l.Backend.Find(ctx, cluster, tokens)
}

func (l *limited) Status(ctx context.Context, handles [][]byte) ([]backends.Status, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	return l.Backend.Status(ctx, handles)
}

func (l *limited) Cancel(ctx context.Context, handles [][]byte) error {
	if err := l.wait(ctx); err != nil {
		return err
	}
	return l.Backend.Cancel(ctx, handles)
}

// retrying tries again what errs.Retryable says may succeed later: every call of the
// contract may be repeated. After its tries the caller hears of it.
type retrying struct {
	backends.Backend
	log   *slog.Logger
	first time.Duration
	tries int
}

func (r *retrying) Unwrap() backends.Backend { return r.Backend }

func retry[T any](ctx context.Context, r *retrying, what string, f func() (T, error)) (T, error) {
	wait := r.first
	for n := 1; ; n++ {
		v, err := f()
		if err == nil || !errs.Retryable(err) || ctx.Err() != nil {
			return v, err
		}
		if n >= r.tries && n == 1 {
			return v, err
		}
		if n >= r.tries {
			return v, errs.Wrap(errs.Unknown, err, "given up after %d tries", n)
		}
		r.log.Debug("backend call failed, trying again", "call", what, "try", n, "in", wait, "err", err)
		if pause(ctx, wait, "") != nil {
			return v, err
		}
		wait = min(2*wait, maxPause)
	}
}

func (r *retrying) Submit(ctx context.Context, req backends.Request) ([]backends.Alloc, error) {
	return retry(ctx, r, "submit", func() ([]backends.Alloc, error) { return r.Backend.Submit(ctx, req) })
}

func (r *retrying) Find(ctx context.Context, cluster string, tokens []string) (map[string][]backends.Alloc, error) {
	return retry(ctx, r, "find", func() (map[string][]backends.Alloc, error) { return r.Backend.Find(ctx, cluster, tokens) })
}

func (r *retrying) Status(ctx context.Context, handles [][]byte) ([]backends.Status, error) {
	return retry(ctx, r, "status", func() ([]backends.Status, error) { return r.Backend.Status(ctx, handles) })
}

func (r *retrying) Cancel(ctx context.Context, handles [][]byte) error {
	_, err := retry(ctx, r, "cancel", func() (struct{}, error) { return struct{}{}, r.Backend.Cancel(ctx, handles) })
	return err
}

func pause(ctx context.Context, d time.Duration, doing string) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return errs.Wrap(errs.Unknown, context.Cause(ctx), "%s", doing)
	}
}
