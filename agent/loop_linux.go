package agent

import (
	"context"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"launcher/agent/core"
	"launcher/agent/detect"
	"launcher/agent/spool"
	"launcher/agent/supervisor"
	"launcher/agent/workers"
	"launcher/internal/errs"
	"launcher/wire"
)

// maxBurst bounds how many events are taken before their effects are performed.
const maxBurst = 512

// event is an event for the core with the connection it came from; one of a connection
// that is not the current one any more is dropped.
type event struct {
	ev   core.Event
	conn *headConn
}

// queue is what waits for the loop. It is not bounded: what fills it is bounded by
// whoever produces (the head's window, the node's processes).
type queue struct {
	mu   sync.Mutex
	q    []event
	more chan struct{}
}

func (q *queue) init() { q.more = make(chan struct{}, 1) }

func (q *queue) push(ev core.Event) { q.add(event{ev: ev}) }

func (q *queue) add(e event) {
	q.mu.Lock()
	q.q = append(q.q, e)
	first := len(q.q) == 1
	q.mu.Unlock()
	if first {
		select {
		case q.more <- struct{}{}:
		default:
		}
	}
}

// takeAll gives what waits, at most max.
func (q *queue) takeAll(into []event, max int) []event {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.q), max)
	into = append(into, q.q[:n]...)
	if n == len(q.q) {
		q.q = q.q[:0]
		if cap(q.q) > 4*maxBurst {
			q.q = nil
		}
		return into
	}
	q.q = append(q.q[:0:0], q.q[n:]...)
	select {
	case q.more <- struct{}{}:
	default:
	}
	return into
}

// loop owns the core. It returns errLeft when the node's work is over.
func (a *agent) loop(ctx context.Context) error {
	timer := a.clock.Timer()
	defer timer.Stop()
	var burst []event
	if err := a.recover(ctx); err != nil {
		return err
	}
	exits := a.super.Exits()
	strays := a.super.Strays()
	for {
		a.mu.Lock()
		due := a.core.Due()
		a.mu.Unlock()
		if due != 0 {
			timer.Reset(due)
		}
		burst = burst[:0]
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.events.more:
		case <-timer.C():
			burst = append(burst, event{ev: a.tick()})
		case x, ok := <-exits:
			if !ok {
				return errs.New(errs.Lost, "the supervisor is gone")
			}
			burst = a.exited(ctx, burst, x)
		case x, ok := <-strays:
			if ok {
				a.workers.Stray(x)
			}
		}
		burst = a.events.takeAll(burst, maxBurst)
		for len(burst) < maxBurst {
			select {
			case x, ok := <-exits:
				if ok {
					burst = a.exited(ctx, burst, x)
					continue
				}
			default:
			}
			break
		}
		if err := a.process(ctx, burst); err != nil {
			return err
		}
	}
}

// recover tells a rebuilt core what the supervisor knows.
func (a *agent) recover(ctx context.Context) error {
	if a.super.Restarts() == 0 && len(a.super.List()) == 0 {
		return nil
	}
	var ev core.Recovered
	for _, p := range a.super.List() {
		if workers.Ours(p.Proc) {
			continue // its pool knows
		}
		ev.Procs = append(ev.Procs, core.ProcInfo{Proc: p.Proc, PID: p.PID, At: p.Started, Exited: p.Exit != nil})
		a.groups.started(p.Proc, p.PID)
		a.outputs.takeOver(p.Proc)
	}
	a.log.Info("agent restarted", "restarts", a.super.Restarts(), "processes", len(ev.Procs))
	return a.process(ctx, []event{{ev: ev}})
}

// exited adds the end of a process to a burst, unless it is one of the workers' or the head.
func (a *agent) exited(ctx context.Context, burst []event, x supervisor.Exit) []event {
	if x.Proc == headProc {
		a.wg.Go(func() { a.seat.exited(ctx, x) })
		return burst
	}
	if workers.Ours(x.Proc) {
		a.workers.Exited(x)
		return burst
	}
	a.spool.Exited(x.Proc)
	a.groups.exited(x.Proc)
	select {
	case a.ends <- struct{}{}:
	default:
	}
	end := core.ProcExited{Proc: x.Proc, Code: x.Code, Signal: x.Signal, RSS: x.RSS, At: x.Ended, Started: x.Started, Leftover: x.Leftover}
	if x.Signal == int32(unix.SIGKILL) {
		a.mu.Lock()
		grew := a.sdk.oom.grew()
		a.mu.Unlock()
		if grew {
			end.Why = starved()
		}
	}
	if a.outputs.ended(ctx, end) {
		return burst
	}
	return append(burst, event{ev: end})
}

// tick samples what a beat tells.
func (a *agent) tick() core.Tick {
	m, err := detect.ReadMemory("/")
	if err != nil {
		a.log.Debug("memory cannot be read", "err", err)
	}
	return core.Tick{Load1: detect.Load("/"), MemFree: m.Room,
		Rate: a.routes.rates.sample(a.clock.Now(), a.routes.meter.Load()), Relays: a.routes.relays()}
}

// effect is an effect with the session that the core believed in when it gave it.
type effect struct {
	e    core.Effect
	conn *headConn
}

// process steps through a burst: records first, then the effects in order.
func (a *agent) process(ctx context.Context, burst []event) error {
	var records []core.Record
	var effects []effect
	step := func(ev core.Event) {
		out := a.core.Step(a.clock.Now(), ev)
		records = append(records, out.Records...)
		for _, e := range out.Effects {
			effects = append(effects, effect{e, a.head.serving})
		}
	}
	a.mu.Lock()
	for _, e := range burst {
		if e.conn != nil && !a.head.serves(e) {
			continue
		}
		step(e.ev)
	}
	step(core.Flush{})
	err := a.state.append(records)
	given := a.core.RoomGiven()
	a.sdk.numbered(a.core.State().Number())
	a.mu.Unlock()
	if err != nil {
		return err
	}
	if given {
		a.sdk.roomGiven()
	}
	err = a.performAll(ctx, effects)
	if err != nil {
		return err
	}
	return a.state.compact(ctx)
}

// performAll does what the core decided, in order. What goes to one place in numbers is
// sent together at the end.
func (a *agent) performAll(ctx context.Context, effects []effect) error {
	var acks []wire.Proc
	var left error
	var groups []core.GroupChanged
	for _, x := range effects {
		switch e := x.e.(type) {
		case core.ToHead:
			a.head.send(x.conn, e)
		case core.Spawn:
			a.starts.order(e)
		case core.Signal:
			a.signal(ctx, e)
		case core.AckExit:
			acks = append(acks, e.Proc)
			a.starts.clean(e.Proc)
		case core.ReleaseLogs:
			a.ship.forget(e.Job)
			a.spool.Forget(e.Job)
			a.env.forget(e.Job)
		case core.OpenGroup:
			a.groups.open(ctx, e)
		case core.AbortGroup:
			a.groups.abort(e)
		case core.LeaveGroup:
			a.groups.leave(e)
		case core.CloseGroup:
			a.groups.closeGroup(e.Gang)
		case core.LeaseTaken, core.LeaseLess, core.LeasesEnd, core.NoRoomEver, core.BundleOver, core.JobsOver, core.TakeActor:
			a.sdk.lease(e)
		case core.GroupChanged:
			groups = append(groups, e)
		case core.LocalReply:
			a.local.reply(e)
		case core.DeleteCheckpoints:
			a.wg.Go(func() { a.deleteCheckpoints(e) })
		case core.HangUp:
			a.head.hangUp(x.conn, e.Why)
		case core.ShipLogs:
			a.wg.Go(func() {
				a.ship.finish(ctx, e.Bound)
				a.events.push(core.LogsShipped{})
			})
		case core.Leave:
			a.why = e.Why
			a.sdk.leaving(e.Why)
			left = errLeft
		}
	}
	a.head.flush()
	if len(groups) > 0 {
		a.sdk.groupsChanged(groups)
	}
	if len(acks) > 0 {
		a.done.add(acks, nil)
	}
	if left != nil {
		a.head.drain()
	}
	return left
}

// signal is answered in a few microseconds; a stuck supervisor must not stop the loop.
func (a *agent) signal(ctx context.Context, e core.Signal) {
	ctx, cancel := context.WithTimeout(ctx, signalBound)
	defer cancel()
	err := a.super.Signal(ctx, e.Proc, unix.Signal(e.Sig), e.Group)
	if err != nil && !errs.Is(err, errs.NotFound) {
		a.log.Warn("a process cannot be signalled", "proc", e.Proc, "signal", e.Sig, "err", err)
	}
}

// spooled takes news of the spool, in its goroutine.
func (a *agent) spooled(e spool.Event) {
	switch e.Kind {
	case spool.Drained:
		if e.Lost > 0 {
			a.log.Error("output was lost: the spool could not be written", "proc", e.Proc, "bytes", e.Lost)
		}
		a.done.add(nil, []string{spool.FDName(e.Proc, spool.Stdout), spool.FDName(e.Proc, spool.Stderr)})
		a.events.push(core.OutputDrained{Proc: e.Proc, LogEnd: e.End})
	case spool.Paused:
		a.log.Warn("output waits", "job", e.Job, "err", e.Err)
		a.events.push(core.OutputHeld{Job: e.Job, Why: e.Err.Error() + " (on node " + string(a.cfg.Node) + " it is written to " + filepath.Join(a.cfg.Dir, "spool") + ")"})
	case spool.Resumed:
		a.log.Info("output goes on", "job", e.Job)
		a.events.push(core.OutputHeld{Job: e.Job})
	case spool.Failed:
		a.events.push(core.OutputFailed{Job: e.Job, Err: errs.ToWire(e.Err)})
	}
}

// storeFile keeps a descriptor with the supervisor; that it fails costs the next agent
// something, not this one.
func (a *agent) storeFile(ctx context.Context, name string, f *os.File) {
	if err := a.super.StoreFD(ctx, name, f); err != nil {
		a.log.Warn("not kept over a restart", "what", name, "err", err)
	}
}
