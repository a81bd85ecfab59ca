// Package slurm grants nodes that a Slurm cluster gives: one job for all nodes of a
// request, whose script starts an agent on each by one step in the foreground. It talks to
// Slurm by sbatch, squeue and scancel, as any user does; versions from 20.11 on will do.
//
// A job is known by its name, which has the submission's token and is used once. Its
// number is not enough: a controller that was killed gives numbers again. What was asked
// is written down before sbatch is called, in clusters/NAME/slurm, and sbatch is not called
// again before the queue was searched for the name: a call that fails may have worked.
//
// The controller serves a whole site. One squeue tells of all jobs, every half a minute
// when nothing changes; that nodes come and die their agents tell the head themselves.
//
// In an allocation that we did not make, with no partition named, nodes are a step of that
// allocation (step.go).
package slurm

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"launcher/backends"
	"launcher/backends/records"
	"launcher/internal/errs"
	"launcher/wire"
)

// Name is the backend's name in a spec.
const Name = "slurm"

// Backend asks Slurm for nodes.
type Backend struct {
	home    string
	cli     commands
	looking chan struct{} // held by who runs squeue
	turns   records.Turns // of submissions that are being worked on

	mu       sync.Mutex
	last     *snapshot // guarded by mu, as is all that follows
	failed   error     // of the newest look, when it failed
	failedAt time.Time
	heard    hearing                  // since when the controller answers
	asked    time.Time                // when a job was asked for last
	every    time.Duration            // how old a snapshot may be
	noBooks  bool                     // the site has no accounting
	calm     bool                     // by the newest look none of our jobs waits
	calmLook time.Duration            // runningLook; not guarded: a test may set it at first
	children map[string]chan struct{} // of steps, by path: closed when their end is on disk
	carried  map[string]*carrying     // by path of record
	reached  map[string]*reaching     // by path of way

	life    context.Context // ends with Close
	end     context.CancelFunc
	carries sync.WaitGroup
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Watcher = (*Backend)(nil)
	_ backends.Unasker = (*Backend)(nil)
)

// New makes the backend for the state directory home ($LAUNCHER_HOME).
func New(home string) *Backend {
	b := &Backend{home: home, cli: commands{counts: map[string]int{}}, looking: make(chan struct{}, 1), every: firstLook, calmLook: runningLook,
		children: map[string]chan struct{}{}, carried: map[string]*carrying{}, reached: map[string]*reaching{}}
	b.life, b.end = context.WithCancel(context.Background())
	return b
}

// Capabilities are the same for all pools.
func (b *Backend) Capabilities() backends.Capabilities {
	return backends.Capabilities{
		Name: Name, SharedFS: true, Cancellable: true, Parallel: 8, Tries: 1,
		DefaultMin: func(backends.Options) int { return 0 },
		Limit:      limit,
	}
}

// limit is the size of the allocation that we are in, where its nodes are the pool's.
func limit(o backends.Options) (int, string) {
	q, faults := parse(o)
	if a, ok := inside(q); ok && len(faults) == 0 {
		return a.Nodes, fmt.Sprintf("the allocation, Slurm job %s, has %s", a.Job, plural(a.Nodes, "node"))
	}
	return 0, ""
}

// Check finds what is wrong with a pool's own keys.
func (b *Backend) Check(o backends.Options) []backends.Fault {
	_, faults := parse(o)
	return faults
}

// Close forgets; jobs run on.
func (b *Backend) Close() error {
	b.end()
	b.carries.Wait()
	return nil
}

// Commands is how often each of Slurm's commands was run.
func (b *Backend) Commands() map[string]int {
	b.cli.mu.Lock()
	defer b.cli.mu.Unlock()
	return maps.Clone(b.cli.counts)
}

// job is one job that is to be.
type job struct {
	record
	pool, cluster, id string
	nodes             []wire.NodeID
	binary, log       string
	after             []string      // jobs that it waits for
	within            time.Duration // it is of no use for longer; 0 = any time
	file              nodesFile
}

// notice is how long work has on a node that Slurm ends, before it is stopped: of the half
// a minute that there is between SIGTERM and SIGKILL by default (KillWait).
const notice = 10 * time.Second

func (j job) names() (out []string) {
	for _, n := range j.nodes {
		out = append(out, string(n))
	}
	return out
}

// comment is for people and for whoever looks for what a cluster has asked for.
func (j job) comment() string {
	word := func(s string) string { return strings.ReplaceAll(s, " ", "_") }
	return strings.Join([]string{"launcher", word(j.cluster), word(j.pool), j.id, j.Token}, ":")
}

// jobs divides a request among jobs: one, or as many as the pool's nodes_per_job makes.
func (b *Backend) jobs(q request, r backends.Request) (out []job, err error) {
	dir, err := b.dirOf(r.Cluster)
	if err != nil {
		return nil, err
	}
	if !wordRE.MatchString(r.Token) || len(r.Nodes) == 0 {
		return nil, errs.New(errs.Invalid, "a submission %q of %d nodes", r.Token, len(r.Nodes))
	}
	home, err := filepath.Abs(b.home)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "the state directory")
	}
	per := len(r.Nodes)
	if q.PerJob > 0 {
		per = min(per, q.PerJob)
	}
	for from := 0; from < len(r.Nodes); from += per {
		to := min(from+per, len(r.Nodes))
		j := job{pool: r.Pool, cluster: r.Cluster, id: records.ClusterID(r.Join.CA), nodes: r.Nodes[from:to], binary: r.Binary, within: time.Duration(r.Within)}
		if !q.Overlap {
			j.after = numbers(r.After)
		}
		j.record = record{V: 1, Dir: dir, Name: jobName(r.Token, len(out)), Token: r.Token, Nodes: j.nodes}
		j.log = j.path(logExt)
		j.file = nodesFile{ID: j.id, Nodes: j.nodes, Epochs: r.Epochs[from:to], Config: wire.NodeConfig{
			Cluster: r.Cluster, Pool: r.Pool, Token: r.Token, Addrs: r.Join.Addrs, CA: r.Join.CA, JoinKey: r.Join.Key,
			CacheDir: filepath.Join(home, "cache"), Resources: r.Resources, Labels: r.Labels, Share: r.Share, Grace: r.Grace,
			ObjectMemory: r.Memory, Spill: r.Spill, Ports: r.Ports, Interface: r.Interface, CertLife: r.CertLife,
			Setup: r.Setup, Env: r.Env, Python: r.Python, Container: r.Container, Notice: int64(notice)}}
		out = append(out, j)
	}
	return out, nil
}

// numbers are the jobs of handles that have not ended, as far as is known.
func numbers(handles [][]byte) (ids []string) {
	for _, h := range handles {
		if r, ok := parseHandle(h); ok {
			if rec, ok, err := load(r.path(recordExt)); err == nil && ok && rec.End == nil && rec.Step == nil && rec.Job != "" {
				ids = append(ids, rec.Job)
			}
		}
	}
	return ids
}

func (b *Backend) request(r backends.Request) (request, error) {
	q, faults := parse(r.Options)
	if len(faults) > 0 {
		return q, errs.New(errs.Invalid, "%s: %s", faults[0].Key, faults[0].Msg)
	}
	return q, nil
}

// Submit asks for the jobs of r that have not been asked for.
func (b *Backend) Submit(ctx context.Context, r backends.Request) ([]backends.Alloc, error) {
	q, err := b.request(r)
	if err != nil {
		return nil, err
	}
	jobs, err := b.jobs(q, r)
	if err != nil {
		return nil, err
	}
	leave, err := b.turns.Enter(ctx, r.Token)
	if err != nil {
		return nil, err
	}
	defer leave()
	var out []backends.Alloc
	for _, j := range jobs {
		rec, err := b.submit(ctx, q, j)
		if err != nil {
			return nil, err
		}
		out = append(out, rec.alloc())
	}
	return out, nil
}

func (b *Backend) submit(ctx context.Context, q request, j job) (record, error) {
	rec, known, err := load(j.path(recordExt))
	if err != nil {
		return rec, err
	}
	if known {
		if found, err := b.settle(ctx, &rec); err != nil || found {
			return rec, err
		}
	}
	if err := ctx.Err(); err != nil {
		return rec, errs.Wrap(errs.Unknown, context.Cause(ctx), "asking for %s", j.Name)
	}
	if err := writeWhole(j.path(nodesExt), wire.Marshal(j.file), false); err != nil {
		return rec, err
	}
	rec = j.record
	rec.At = time.Now().Unix()
	if a, ok := inside(q); ok {
		return rec, b.startStep(a, j, &rec)
	}
	rec.Apart, rec.Binary = q.Apart, j.binary
	text, err := q.script(j)
	if err == nil {
		err = rec.begin()
	}
	if err != nil {
		rec.forget()
		return rec, err
	}
	b.soon()
	out, err := b.cli.run(ctx, environment(environ(), &q), text, "sbatch", "--parsable")
	if err == nil {
		rec.Job, _, _ = strings.Cut(strings.TrimSpace(out), ";")
		return rec, rec.write()
	}
	if len(j.after) > 0 && strings.Contains(strings.ToLower(err.Error()), "dependency") {
		// They ended so long ago that Slurm has forgotten them.
		rec.forget()
		j.after = nil
		return b.submit(ctx, q, j)
	}
	if k := errs.KindOf(err); k == errs.Unavailable || k == errs.Timeout || k == errs.Cancelled {
		return rec, err // it may have worked: Find asks
	} else if k == errs.Exhausted {
		// It asks again by itself, and may have been let in before it was ended.
		s, err2 := b.look(ctx, time.Now())
		if err2 != nil {
			return rec, err2
		}
		if found, err2 := rec.findIn(s); found {
			return rec, err2
		}
	}
	rec.forget()
	return rec, err
}

// findIn takes a job of the record's name in the queue for the record's.
func (rec *record) findIn(s *snapshot) (bool, error) {
	es := s.byName[rec.Name]
	if len(es) == 0 {
		return false, nil
	}
	rec.Job = es[0].id
	return true, rec.write()
}

// inFlight is how long after it was asked for a job that is not in the queue may still
// come: the controller may have the question and not have looked at it. One that did not
// answer for a while may do first what it was asked last: it must have answered for backlog.
// One that always takes longer than slowLook has done by slowBacklog what it was asked before.
const (
	inFlight    = 15 * time.Second
	backlog     = 5 * time.Second
	slowLook    = 2 * time.Second // it did not answer meanwhile, or is slow
	slowBacklog = callBound
)

// hearing is since when the controller answers; nothing is known of it in the zero value.
type hearing struct {
	since   time.Time // every look was answered
	swiftly time.Time // and within slowLook
}

func (h *hearing) answered(asked, now time.Time) {
	if h.since.IsZero() {
		*h = hearing{now, now}
	} else if now.Sub(asked) > slowLook {
		h.swiftly = now
	}
}

// sure is when what was asked before is done, or will not be.
func (h hearing) sure() time.Time {
	swift, slow := h.swiftly.Add(backlog), h.since.Add(slowBacklog)
	if slow.Before(swift) {
		return slow
	}
	return swift
}

// settle finds out what became of a job that was asked for; false = it never was.
func (b *Backend) settle(ctx context.Context, rec *record) (bool, error) {
	if rec.Job != "" || rec.Step != nil || rec.End != nil {
		return true, nil
	}
	s, err := b.look(ctx, time.Now())
	if err != nil {
		return false, err
	}
	if found, err := rec.findIn(s); found {
		return true, err
	}
	b.mu.Lock()
	sure := b.heard.sure()
	b.mu.Unlock()
	if s.at.Before(time.Unix(rec.At, 0).Add(inFlight)) || s.at.Before(sure) {
		return false, errs.New(errs.Unavailable, "whether Slurm has taken job %s is not known yet", rec.Name)
	}
	rec.forget()
	return false, nil
}

// Find looks submissions up by token: in the files here and, where an answer never came,
// in the queue.
func (b *Backend) Find(ctx context.Context, cluster string, tokens []string) (map[string][]backends.Alloc, error) {
	found := map[string][]backends.Alloc{}
	dir, err := b.dirOf(cluster)
	if err != nil {
		return found, nil // such a cluster never was
	}
	var first error
	for _, t := range tokens {
		as, err := b.find(ctx, dir, t)
		if err != nil && first == nil {
			first = err
		}
		if len(as) > 0 {
			found[t] = as
		}
	}
	return found, first
}

func (b *Backend) find(ctx context.Context, dir, token string) (out []backends.Alloc, err error) {
	if !wordRE.MatchString(token) {
		return nil, nil // such a token was never used
	}
	leave, err := b.turns.Enter(ctx, token)
	if err != nil {
		return nil, err
	}
	defer leave()
	recs, err := ofToken(dir, token)
	if err != nil {
		return nil, err
	}
	for i := range recs {
		ok, err := b.settle(ctx, &recs[i])
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, recs[i].alloc())
		}
	}
	return out, nil
}

// maxIDs is how many jobs one scancel names.
const maxIDs = 500

// Cancel ends jobs. It returns when Slurm says that nothing of them runs.
func (b *Backend) Cancel(ctx context.Context, handles [][]byte) error {
	var open []record
	for _, h := range handles {
		r, ok := parseHandle(h)
		if !ok {
			continue
		}
		rec, ok, err := load(r.path(recordExt))
		switch {
		case err != nil:
			return err
		case !ok || rec.End != nil:
			continue
		}
		if !rec.Stopped {
			rec.Stopped = true
			if err := rec.write(); err != nil {
				return err
			}
		}
		open = append(open, rec)
	}
	if err := b.endSteps(ctx, open); err != nil {
		return err
	}
	open = slices.DeleteFunc(open, func(r record) bool { return r.Step != nil })
	if len(open) == 0 {
		return nil
	}
	asked := map[string]bool{} // scancel has been told of them
	for pause := 400 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		s, err := b.look(ctx, time.Now())
		if err != nil {
			return err
		}
		var ids []string
		left := open[:0:0]
		for _, r := range open {
			if st := b.judge(&r, s); st.State.Ended() {
				continue
			}
			left = append(left, r)
			for _, e := range s.byName[r.Name] {
				if !over(e.state) && e.state != "COMPLETING" && !asked[e.id] {
					ids = append(ids, e.id)
				}
			}
		}
		if open = left; len(open) == 0 {
			return nil
		}
		if err := b.cancelJobs(ctx, ids, nil); err != nil {
			return err
		}
		for _, id := range ids {
			asked[id] = true
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return errs.Wrap(errs.Unknown, context.Cause(ctx), "ending Slurm job %s", open[0].Job)
		}
	}
}

// cancelJobs has jobs cancelled; options go before their numbers.
func (b *Backend) cancelJobs(ctx context.Context, ids, options []string) error {
	for len(ids) > 0 {
		some := ids[:min(len(ids), maxIDs)]
		ids = ids[len(some):]
		_, err := b.cli.run(ctx, environment(environ(), nil), "", "scancel", append(slices.Clone(options), some...)...)
		// One that ends just now is no failure; whether all do is looked at.
		if k := errs.KindOf(err); err != nil && k != errs.Invalid {
			return err
		}
	}
	return nil
}

// onlyWaiting has scancel pass over jobs that have begun meanwhile.
var onlyWaiting = []string{"--state=PENDING"}

// Unask cancels those of the jobs that wait for nodes; what becomes of them Status tells.
func (b *Backend) Unask(ctx context.Context, handles [][]byte) error {
	s, err := b.look(ctx, time.Now())
	if err != nil {
		return err
	}
	var ids []string
	for _, h := range handles {
		r, ok := parseHandle(h)
		if !ok {
			continue
		}
		rec, ok, err := load(r.path(recordExt))
		if err != nil {
			return err
		}
		if !ok || rec.End != nil || rec.Step != nil || rec.Ran {
			continue
		}
		waits := 0
		for _, e := range s.byName[rec.Name] {
			if waiting(e.state) {
				ids, waits = append(ids, e.id), waits+1
			}
		}
		if waits > 0 && !rec.Unasked {
			rec.Unasked = true
			if err := rec.write(); err != nil {
				return err
			}
		}
	}
	b.soon()
	return b.cancelJobs(ctx, ids, onlyWaiting)
}

// DryRun writes the script that Submit would hand to sbatch.
func (b *Backend) DryRun(r backends.Request, w io.Writer) error {
	q, err := b.request(r)
	if err != nil {
		return err
	}
	jobs, err := b.jobs(q, r)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if a, ok := inside(q); ok {
			fmt.Fprintf(w, "# nodes %s, in Slurm job %s\n%s >> %s 2>&1 &\n", strings.Join(j.names(), " "), a.Job, strings.Join(j.step(), " "), quote(j.log))
			continue
		}
		text, err := q.script(j)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "sbatch --parsable <<'EOF'\n%sEOF\n# %s (0600) holds what the agents are started with, a one-use join key among it\n", text, j.path(nodesExt))
	}
	return nil
}

// ownHost is the machine that we are on.
func ownHost() string {
	h, _ := os.Hostname()
	return h
}
