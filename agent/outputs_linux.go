package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/bundle"
	"launcher/wire/session"
)

// outputs brings back what tasks write where this node does not see the directory of their
// job. A job with outputs has a private copy for each attempt of each task, which the ranks
// here share: so what an attempt wrote is known, and nothing of another is in it. When the
// last of the ranks has ended, what the globs mean goes to the head, and only then is the
// end told; the head brings it to the job's directory if the task is over by that attempt.
type outputs struct {
	a *agent

	mu     sync.Mutex
	here   map[wire.Try]map[uint32]bool // ranks that run in a copy; guarded by mu
	leaves map[wire.Try]chan struct{}   // copies that are on their way to the head; guarded by mu
}

// outputsBound is how long the end of a process may wait for its outputs to be with the head.
const outputsBound = 20 * time.Minute

func newOutputs(a *agent) *outputs {
	return &outputs{a: a, here: map[wire.Try]map[uint32]bool{}, leaves: map[wire.Try]chan struct{}{}}
}

// copyOf is where an attempt of a task runs.
func (t *trees) copyOf(y wire.Try) string {
	return filepath.Join(t.root(y.Job), "tries", fmt.Sprintf("%d.a%d", y.Index, y.Attempt))
}

// begins: a rank will run in a copy, which is not there yet, or is another's, too. One that
// the ranks before have left goes first: what is written to it now would be lost.
func (o *outputs) begins(ctx context.Context, p wire.Proc) error {
	for {
		o.mu.Lock()
		left := o.leaves[p.Try]
		if left == nil {
			if o.here[p.Try] == nil {
				o.here[p.Try] = map[uint32]bool{}
			}
			o.here[p.Try][p.Rank] = true
			o.mu.Unlock()
			return nil
		}
		o.mu.Unlock()
		select {
		case <-left:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// takeOver: a process was started by an agent before.
func (o *outputs) takeOver(p wire.Proc) {
	if isDir(o.a.trees.copyOf(p.Try)) {
		_ = o.begins(context.Background(), p) // none is on its way yet
	}
}

// last says that a rank does not run. If it was the last one in its copy, nobody else begins
// there before gone is called; else gone is nil.
func (o *outputs) last(p wire.Proc) (gone func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	ranks := o.here[p.Try]
	if ranks == nil {
		return nil
	}
	if delete(ranks, p.Rank); len(ranks) > 0 {
		return nil
	}
	delete(o.here, p.Try)
	left := make(chan struct{})
	o.leaves[p.Try] = left
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.leaves, p.Try)
		close(left)
	}
}

// failed: a process could not be started.
func (o *outputs) failed(p wire.Proc) {
	if gone := o.last(p); gone != nil {
		remove(o.a.trees.copyOf(p.Try))
		gone()
	}
}

// remove removes a copy, which is not there any more from the beginning on: another agent
// might take what is half removed for what its processes wrote.
func remove(at string) {
	_ = os.Remove(at + packedSuffix)
	dying := at + ".gone"
	_ = os.RemoveAll(dying) // of the same attempt, by an agent that was killed
	_ = os.Rename(at, dying)
	_ = os.RemoveAll(dying)
}

// ended takes the end of a process over that is to be told when its outputs are with the
// head; false when there is nothing to wait for. a.mu must not be held.
func (o *outputs) ended(ctx context.Context, end core.ProcExited) bool {
	gone := o.last(end.Proc)
	if gone == nil {
		return false
	}
	o.a.mu.Lock()
	j := o.a.core.JobOf(end.Proc)
	o.a.mu.Unlock()
	if j == nil {
		gone()
		return false
	}
	o.a.wg.Go(func() {
		o.give(ctx, j, end.Proc)
		gone()
		if ctx.Err() == nil { // else it is told to the next agent
			o.a.events.push(end)
		}
	})
	return true
}

// give gives the head the outputs of an attempt, or why they are not to be had.
func (o *outputs) give(ctx context.Context, j *wire.Job, p wire.Proc) {
	within, cancel := context.WithTimeout(ctx, outputsBound)
	defer cancel()
	t := o.a.trees
	at := t.copyOf(p.Try)
	put := wire.TreePut{Tree: wire.Tree{Job: p.Job, Path: fmt.Sprintf("outputs/%d.a%d/%d", p.Index, p.Attempt, p.Rank)}}
	packed, err := t.madeOf(within, j.Spec.DirSum, at)
	if err == nil {
		err = t.put(within, put, func(w io.Writer) error { return bundle.PackOutputs(within, w, at, packed, j.Spec.Outputs) })
		packed.Close()
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		o.a.log.Warn("outputs stay here", "proc", p, "dir", at, "err", err)
		put.Why = fmt.Sprintf("its outputs stay on node %s in %s: %s", o.a.cfg.Node, at, errs.Line(err))
		short, cancel := context.WithTimeout(ctx, writeBound)
		defer cancel()
		if err := t.put(short, put, nil); err != nil {
			o.a.log.Warn("the head does not know so", "proc", p, "err", err)
		}
		return
	}
	remove(at)
}

// put gives a tree to the head: what pack writes, unless the message says why there is none.
func (t *trees) put(ctx context.Context, m wire.TreePut, pack func(io.Writer) error) error {
	ctx, cancel := context.WithTimeout(ctx, treeBound)
	defer cancel()
	return t.withHead(ctx, wire.MsgTreePut, m, func(st *session.Stream) error {
		if is, err := readAnswer[wire.TreeWanted](st); err != nil || !is.Wanted {
			return err
		}
		if pack != nil {
			z, err := bundle.Compress(steady{st})
			if err == nil {
				err = pack(z)
			}
			if err == nil {
				err = z.Close()
			}
			if err != nil {
				if e, ok := refusal(st); ok {
					return e
				}
				_ = st.CloseWith(err)
				return err
			}
		}
		_ = st.CloseWrite()
		_, err := readAnswer[struct{}](st)
		return err
	})
}
