package head

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"launcher/head/core"
	"launcher/head/record"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/bundle"
)

// What tasks wrote in private copies of a job's directory lies in outputs/ of the job's
// record: INDEX.aATTEMPT as it came from nodes, one RANK below it for each part; INDEX once
// the task is over by that attempt, until it was brought to the directory that the job was
// submitted from. That is on this machine, or on the broker's.

const (
	// outputsEvery is after how long it is tried again to bring what could not be.
	outputsEvery = 30 * time.Second
	// restHere is how long a head that ends goes on bringing what it is bringing, restAway
	// the same to another machine: less than `launcher down` waits for a head to be gone.
	restHere  = 8 * time.Second
	restAway  = 5 * time.Minute
	cameFile  = "came"
	whySuffix = ".why"
	// maxOutputsWhy bounds the reasons that are kept of a job.
	maxOutputsWhy = 20
)

var (
	outputRE = regexp.MustCompile(`^outputs/([0-9]+)\.a([0-9]+)/[0-9]+$`)
	stagedRE = regexp.MustCompile(`^([0-9]+)\.a([0-9]+)$`)
)

// outputs brings outputs to where they belong.
type outputs struct {
	h *head

	mu   sync.Mutex
	jobs map[wire.JobID]*jobOutputs // guarded by mu, and so is what is in them
}

type jobOutputs struct {
	due  map[uint32]wire.Attempt // tasks that are over since the last look
	idle chan struct{}           // closed when nothing is being brought; nil = nothing is
	info wire.Outputs
}

func newOutputs(h *head) *outputs { return &outputs{h: h, jobs: map[wire.JobID]*jobOutputs{}} }

func (o *outputs) dir(job wire.JobID) string {
	return filepath.Join(o.h.state, "jobs", strconv.FormatUint(uint64(job), 10), "outputs")
}

// job gives what is known of a job's outputs; mu must be held.
func (o *outputs) job(id wire.JobID) *jobOutputs {
	j := o.jobs[id]
	if j == nil {
		j = &jobOutputs{due: map[uint32]wire.Attempt{}}
		if b, err := os.ReadFile(filepath.Join(o.dir(id), cameFile)); err == nil {
			_ = wire.Unmarshal(b, &j.info)
		}
		o.jobs[id] = j
	}
	return j
}

// over: a task has ended, so what its last attempt wrote counts.
func (o *outputs) over(e core.TaskOver) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.job(e.Task.Job).due[e.Task.Index] = e.Attempt
	o.kick(e.Task.Job)
}

// kick has the outputs of a job be brought; mu must be held.
func (o *outputs) kick(id wire.JobID) *jobOutputs {
	j := o.job(id)
	if j.idle == nil {
		j.idle = make(chan struct{})
		o.h.wg.Go(func() { o.bringAll(o.h.ctx, id, j) })
	}
	return j
}

// again tries whatever waits.
func (o *outputs) again() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, j := range o.jobs {
		if j.info.Waiting > 0 {
			o.kick(id)
		}
	}
}

// run takes up what an earlier head left, and tries again what waits.
func (o *outputs) run(ctx context.Context) {
	found, _ := filepath.Glob(filepath.Join(o.h.state, "jobs", "*", "outputs"))
	for _, d := range found {
		if id, err := strconv.ParseUint(filepath.Base(filepath.Dir(d)), 10, 32); err == nil {
			o.mu.Lock()
			o.kick(wire.JobID(id))
			o.mu.Unlock()
		}
	}
	tick := time.NewTicker(outputsEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			o.again()
		case <-ctx.Done():
			return
		}
	}
}

// await has what is due of a job be brought, and says what became of it.
func (o *outputs) await(ctx context.Context, id wire.JobID, gone <-chan struct{}) (wire.Outputs, error) {
	o.mu.Lock()
	j := o.kick(id)
	idle := j.idle
	o.mu.Unlock()
	select {
	case <-idle:
	case <-gone:
	case <-ctx.Done():
		return wire.Outputs{}, errEnding()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return j.info, nil
}

// rest waits until nothing is being brought, within bounds: the cluster is down, and no other
// head will bring it.
func (o *outputs) rest(ctx context.Context) {
	bound := restHere
	if o.h.remote() != nil {
		bound = restAway
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	for {
		o.mu.Lock()
		var idle chan struct{}
		for _, j := range o.jobs {
			if j.idle != nil {
				idle = j.idle
			}
		}
		o.mu.Unlock()
		if idle == nil {
			return
		}
		select {
		case <-idle:
		case <-ctx.Done():
			o.h.log.Warn("outputs that are being brought stay in the record")
			return
		}
	}
}

// fill adds to the info of a job what is known of its outputs.
func (o *outputs) fill(i *wire.JobInfo) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if j := o.jobs[i.ID]; j != nil && i.Outputs != nil {
		info := j.info
		i.Outputs = &info
	}
}

// bringAll brings what is due until nothing is.
func (o *outputs) bringAll(ctx context.Context, id wire.JobID, j *jobOutputs) {
	for {
		o.mu.Lock()
		due := j.due
		j.due = map[uint32]wire.Attempt{}
		info := j.info
		o.mu.Unlock()
		o.settle(id, due)
		err := o.bring(ctx, id, &info)
		o.mu.Lock()
		changed := info.Files != j.info.Files || info.Waiting != j.info.Waiting || len(info.Failed) != len(j.info.Failed)
		j.info = info
		if len(j.due) > 0 && ctx.Err() == nil {
			o.mu.Unlock()
			continue
		}
		close(j.idle)
		j.idle = nil
		o.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			o.h.log.Warn("the outputs of a job wait", "job", id, "err", err)
		}
		if changed {
			o.h.tables.changed(id, true)
		}
		return
	}
}

// settle gives what the attempts wrote that ended their tasks its final name, and removes
// what others did.
func (o *outputs) settle(id wire.JobID, due map[uint32]wire.Attempt) {
	dir := o.dir(id)
	ents, _ := os.ReadDir(dir)
	newest := map[uint32]wire.Attempt{}
	for _, e := range ents {
		if i, a, ok := staged(e.Name()); ok {
			newest[i] = max(newest[i], a)
		}
	}
	for i, last := range newest {
		a, ok := due[i]
		if !ok {
			var known, over bool
			o.h.do(func(c *core.Core) { a, known, over = c.Over(wire.Task{Job: id, Index: i}) })
			if !over {
				continue
			}
			if !known {
				a = last
			}
		}
		to := filepath.Join(dir, strconv.FormatUint(uint64(i), 10))
		if err := os.Rename(filepath.Join(dir, fmt.Sprintf("%d.a%d", i, a)), to); err != nil && !errors.Is(err, fs.ErrNotExist) {
			o.h.log.Error("outputs are not brought back", "job", id, "task", i, "err", err)
			continue
		}
		stale, _ := filepath.Glob(to + ".a*")
		for _, p := range stale {
			_ = os.RemoveAll(p)
		}
	}
}

func staged(name string) (uint32, wire.Attempt, bool) {
	m := stagedRE.FindStringSubmatch(name)
	if m == nil {
		return 0, 0, false
	}
	i, err := strconv.ParseUint(m[1], 10, 32)
	a, err2 := strconv.ParseUint(m[2], 10, 32)
	return uint32(i), wire.Attempt(a), err == nil && err2 == nil
}

// bring brings what has its final name, and notes what became of it.
func (o *outputs) bring(ctx context.Context, id wire.JobID, info *wire.Outputs) (err error) {
	dir := o.dir(id)
	ents, e := os.ReadDir(dir)
	if e != nil {
		return nil // there are none
	}
	var ready []uint64
	for _, e := range ents {
		if i, err := strconv.ParseUint(e.Name(), 10, 32); err == nil {
			ready = append(ready, i)
		}
	}
	slices.Sort(ready)
	var spec wire.JobSpec
	o.h.do(func(c *core.Core) { spec, _ = c.Spec(id) })
	info.Waiting, info.Why, info.At = 0, "", ""
	for _, i := range ready {
		at := filepath.Join(dir, strconv.FormatUint(i, 10))
		came, failed, berr := o.bringTask(ctx, id, &spec, at)
		if berr != nil {
			info.Waiting++
			info.Why, info.At = errs.Line(berr), dir
			err = cmp.Or(err, berr)
			continue
		}
		info.Files, info.Bytes = info.Files+came.Files, info.Bytes+came.Bytes
		for _, why := range failed {
			if len(info.Failed) < maxOutputsWhy {
				info.Failed = append(info.Failed, fmt.Sprintf("task %d.%d: %s", id, i, why))
			}
		}
		// Counted once: a head that is started between the two counts them again.
		if e := record.WriteFile(filepath.Join(dir, cameFile), wire.Marshal(*info)); e != nil {
			o.h.log.Warn("what came of outputs is not noted", "job", id, "err", e)
		}
		_ = os.RemoveAll(at)
	}
	return err
}

func (o *outputs) bringTask(ctx context.Context, id wire.JobID, s *wire.JobSpec, at string) (came bundle.Came, failed []string, err error) {
	parts, err := os.ReadDir(at)
	if err != nil {
		return came, nil, err
	}
	for _, p := range parts {
		from := filepath.Join(at, p.Name())
		switch {
		case strings.HasSuffix(p.Name(), whySuffix):
			b, _ := os.ReadFile(from)
			failed = append(failed, string(b))
			continue
		case !p.IsDir() || p.Name()[0] == '.':
			continue
		}
		into := wire.Into{Dir: s.Dir, Token: s.DirToken, Tag: fmt.Sprintf("%s-%d", o.h.config.Name, id)}
		var n bundle.Came
		if r := o.h.remote(); r != nil {
			n, err = r.Bring(ctx, into, from)
		} else {
			n, err = bundle.Bring(ctx, from, into)
		}
		if err != nil {
			return came, nil, err
		}
		came.Add(n)
	}
	return came, failed, nil
}

// wanted reports whether what an attempt wrote may still count.
func (o *outputs) wanted(t wire.Tree) bool {
	i, _, ok := staged(strings.Split(t.Path, "/")[1])
	var over bool
	o.h.do(func(c *core.Core) { _, _, over = c.Over(wire.Task{Job: t.Job, Index: i}) })
	return ok && !over
}
