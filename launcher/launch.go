package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"launcher/internal/errs"
	"launcher/wire"
)

// style is how a job's output is shown.
type style uint8

const (
	styleRaw   style = iota // bytes as they come: one process
	styleLines              // whole lines, unmarked: arrays, gangs of run
	styleRanks              // whole lines, each with [rank]
	styleNone               // not at all: sweeps, whose table is the output
)

// styleOf is the style for a job by its shape.
func styleOf(s wire.JobSpec) style {
	switch {
	case s.Kind == wire.KindSweep:
		return styleNone
	case s.Kind == wire.KindTrain:
		return styleRanks
	case s.Kind == wire.KindArray || s.Ranks > 1:
		return styleLines
	}
	return styleRaw
}

// launch is a job to hand in and, unless detached, to see through.
type launch struct {
	spec   wire.JobSpec
	detach bool
	on     string // --on SPEC
	style  style
	after  func(ctx context.Context, t target, job wire.JobID, gone bool) error // with the cluster still up, when the job has ended
	gone   bool                                                                 // the cluster ends with the command, with its record
}

// launch runs a job in the foreground (or hands it in) and maps its end to ours.
func (a *app) launch(ctx context.Context, l launch) (err error) {
	if l.on != "" {
		if l.detach {
			return errs.New(errs.Invalid, "--on and --detach exclude each other: somebody must bring the cluster down").
				Hint("launcher up %s, then the same command with --detach", shellJoin(l.on))
		}
		t, started, uerr := a.bringUp(ctx, l.on, upOptions{})
		if uerr != nil && !started {
			return uerr
		}
		if started {
			defer func() {
				derr := a.takeDown(context.WithoutCancel(ctx), t, downOptions{})
				if derr == nil {
					a.noteLeft(t)
				} else if err == nil {
					err = derr
				}
			}()
		}
		if uerr != nil {
			return uerr
		}
		return a.launchOn(ctx, t, l)
	}
	if al, ok := a.allocation(); ok {
		return a.launchInAllocation(ctx, al, l)
	}
	t, err := a.pick(false)
	if err == nil {
		err = a.awake(ctx, t)
	}
	if err != nil {
		return err
	}
	return a.launchOn(ctx, t, l)
}

func (a *app) launchOn(ctx context.Context, t target, l launch) error {
	ctx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	var in *interrupts
	if !l.detach {
		in = a.catchInterrupts(t, l.spec.Grace, giveUp)
		defer in.stop()
	}
	c, job, err := a.submit(ctx, t, l.spec)
	if err != nil {
		if in != nil && in.interrupted() {
			return &exitError{code: exitCancelled, side: sideLauncher}
		}
		return err
	}
	if l.detach {
		c.Close()
		a.submitted(job)
		return nil
	}
	in.setJob(job)
	if a.json {
		a.printJSON(doc{"event": "submitted", "job": job})
	}
	v := a.newView(job, l.spec.Name, l.style)
	v.gone = l.gone
	if l.spec.Kind == wire.KindSweep && !a.json {
		v.sweep = a.newSweepView(t, job, l.spec.Name)
	}
	f := &follower{a: a, target: t, job: job, task: -1, rank: -1, info: v.info}
	if l.style != styleNone || a.json {
		f.output = v.output
	}
	v.start(ctx, t)
	info, err := f.run(ctx, c)
	v.stop()
	if err == nil && l.after != nil {
		err = l.after(ctx, t, job, l.gone)
	}
	if err != nil {
		if in.interrupted() && !info.State.Terminal() {
			a.note("launcher: job %d has not ended yet; `launcher cancel %d` tries again", job, job)
			return &exitError{code: exitCancelled, side: sideLauncher}
		}
		return err
	}
	if in.interrupted() && info.State != wire.StateDone {
		v.finish(info, exitCancelled, sideLauncher)
		return &exitError{code: exitCancelled, side: sideLauncher}
	}
	err = a.endOf(ctx, t, info, v)
	if l.gone && !a.json && info.Tasks > 1 && info.Failed > 0 && l.after == nil {
		a.showFailed(ctx, t, info)
	}
	return err
}

// shownFailed bounds the failed tasks that are shown where nobody can ask for them later.
const shownFailed = 20

// showFailed shows the first of a job's failed tasks, as `launcher tasks JOB --failed` does.
func (a *app) showFailed(ctx context.Context, t target, info wire.JobInfo) {
	c, err := dial(ctx, t)
	if err != nil {
		return
	}
	defer c.Close()
	var tasks []wire.TaskInfo
	if err := c.call(ctx, wire.MsgTasks, wire.TasksRequest{Job: info.ID, Limit: shownFailed, States: []wire.State{wire.StateFailed, wire.StateLost}}, &tasks); err == nil {
		a.printTasks(a.err, tasks)
	}
}

// endOf reports the end of a foreground job and gives its exit.
func (a *app) endOf(ctx context.Context, t target, info wire.JobInfo, v *view) error {
	oerr := a.awaitOutputs(ctx, t, &info)
	err := jobExit(info)
	if err == nil {
		if err = oerr; err == nil {
			err = outputsErr(&info)
		}
		if err != nil {
			err = exitWith(exitLauncher, err)
		}
	}
	code, side := exitCode(err)
	v.finish(info, code, side)
	if a.json {
		a.told = true
	}
	return err
}

// submit hands a job in. The token makes it the same job when the connection breaks and
// we ask again. The connection is the caller's to close.
func (a *app) submit(ctx context.Context, t target, s wire.JobSpec) (*client, wire.JobID, error) {
	s.Sockets = opensSockets(&s)
	req := wire.Submit{Token: rand.Text(), Spec: s}
	began := time.Now()
	for {
		c, err := dial(ctx, t)
		if err == nil {
			var got wire.Submitted
			if err = a.ship(ctx, t, c, &req.Spec); err == nil {
				err = c.call(ctx, wire.MsgSubmit, req, &got)
			}
			if err == nil {
				return c, got.Job, nil
			}
			c.Close()
		}
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		// The first answer is final unless the head was there and went away under us.
		if !errs.Retryable(err) || time.Since(began) > reconnectBound {
			return nil, 0, err
		}
		select {
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// submitted prints the number of a job that goes on without us.
func (a *app) submitted(job wire.JobID) {
	if a.json {
		a.printJSON(doc{"job": job})
		return
	}
	fmt.Fprintln(a.out, job)
	if a.outTTY {
		a.note("`launcher logs -f %d` shows its output, `launcher attach %d` joins it", job, job)
	}
}

// view shows a job while it runs.
type view struct {
	a     *app
	job   wire.JobID
	name  string
	style style
	lines *lineWriter
	began time.Time
	quit  chan struct{}
	wg    sync.WaitGroup
	seen  bool // something has run
	sweep *sweepView
	gone  bool // nothing can be asked afterwards
}

func (a *app) newView(job wire.JobID, name string, st style) *view {
	v := &view{a: a, job: job, name: name, style: st, began: time.Now(), quit: make(chan struct{})}
	prefix := func(procStream) string { return "" }
	if st == styleRanks {
		prefix = func(k procStream) string { return "[" + strconv.Itoa(int(k.rank)) + "] " }
	}
	v.lines = newLineWriter(prefix, v.emit)
	return v
}

func (v *view) emit(stream uint8, b []byte) error {
	w := v.a.out
	if stream == 2 {
		w = v.a.err
	}
	return v.a.screen.write(w, b)
}

// output takes a piece of the job's output.
func (v *view) output(c wire.LogChunk) error {
	if c.Note != "" && !v.a.json {
		v.a.note("launcher: %s", c.Note)
		return nil
	}
	switch {
	case v.a.json:
		v.a.printJSON(chunkDoc(c))
		return nil
	case v.style == styleRaw:
		return v.emit(c.Stream, c.Data)
	case v.style == styleNone:
		return nil
	}
	return v.lines.write(procStream{c.Proc.Index, uint32(c.Proc.Attempt), c.Proc.Rank, c.Stream}, c.Data)
}

func chunkDoc(c wire.LogChunk) doc {
	d := doc{"event": "output", "task": c.Proc.Task.String(), "attempt": c.Proc.Attempt, "rank": c.Proc.Rank,
		"node": c.Node, "stream": streamName(c.Stream), "time": stamp(c.Time), "offset": c.Offset}
	if c.Note != "" {
		d["note"] = c.Note
		return d
	}
	if utf8.Valid(c.Data) {
		d["data"] = string(c.Data)
	} else {
		d["base64"] = base64.StdEncoding.EncodeToString(c.Data)
	}
	return d
}

func streamName(s uint8) string {
	if s == 2 {
		return "stderr"
	}
	return "stdout"
}

// info takes the newest state of the job.
func (v *view) info(j wire.JobInfo) {
	if v.sweep != nil {
		v.sweep.changed()
	}
	if j.Running > 0 || j.Done > 0 || j.Failed > 0 || j.State.Terminal() {
		if !v.seen {
			v.seen = true
			close(v.quit)
		}
	}
	if j.State.Terminal() {
		v.a.screen.progress("")
		return
	}
	switch {
	case v.style == styleRanks && j.Step > 0:
		v.a.screen.progress(trainLine(j))
	case j.Tasks > 1:
		v.a.screen.progress(progressLine(v.name, int(j.Done), int(j.Failed+j.Cancelled), int(j.Running), int(j.Tasks), v.began))
	}
}

func trainLine(j wire.JobInfo) string {
	s := fmt.Sprintf("%s  step %d", j.Name, j.Step)
	return s + "  " + metricsText(j.Metrics)
}

// waitNote is how long a job may wait before we say what for.
const waitNote = 3 * time.Second

// start says, once, what the job waits for if nothing of it runs after a while.
func (v *view) start(ctx context.Context, t target) {
	if v.sweep != nil {
		v.sweep.start(ctx)
	}
	v.wg.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-v.quit:
			return
		case <-time.After(waitNote):
		}
		c, err := dial(ctx, t)
		if err != nil {
			return
		}
		defer c.Close()
		var w wire.WhyAnswer
		if c.call(ctx, wire.MsgWhy, wire.Why{Job: v.job}, &w) == nil && len(w.Lines) > 0 {
			why := w.Lines[1:] // after the summary
			if len(why) == 0 {
				why = w.Lines
			}
			v.a.note("launcher: job %d waits: %s", v.job, strings.Join(why[:min(3, len(why))], "; "))
		}
	})
}

// stop ends what start began and writes unfinished lines.
func (v *view) stop() {
	if !v.seen {
		v.seen = true
		close(v.quit)
	}
	v.wg.Wait()
	if v.sweep != nil {
		v.sweep.stop()
	}
	_ = v.lines.flush()
	v.a.screen.progress("")
}

// finish prints how the job ended.
func (v *view) finish(j wire.JobInfo, code int, side string) {
	switch {
	case v.a.json:
		v.a.told = true
		v.a.printJSON(doc{"event": "ended", "job": toJSONJob(j), "exit": jsonExit{code, side}})
	case j.State == wire.StateDone:
	case side == sideLauncher && saysItself(j): // the error line says it
	case v.style == styleRaw && side == sideCommand && code < 128:
		// The command has said what it has to say; its code is passed on.
	default:
		v.a.note("%s", jobSummary(j))
		if j.Tasks > 1 && j.Failed > 0 && !v.gone {
			v.a.note("hint: `launcher tasks %d --failed` lists them, `launcher logs %d --task N` shows one", j.ID, j.ID)
		}
	}
}

// saysItself reports whether the error of a job's end is printed as an error line.
func saysItself(j wire.JobInfo) bool {
	e, ok := errors.AsType[*exitError](jobExit(j))
	return ok && e.err != nil
}
