package core

import (
	"cmp"
	"maps"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

const (
	millisecond = int64(1e6)
	second      = int64(1e9)

	beatEvery = second
	// maxEarly bounds how many processes that have ended, and given their room to others,
	// wait for their output to be in: a spool that is stuck must not let them pile up.
	maxEarly = 64
	// beatGap is between two beats at least, when there is news.
	beatGap = second / 10
	// drainWait is how long output may go on after the end of a process whose children,
	// out of reach in a session of their own, hold its pipes.
	drainWait = 2 * second
	// peerDelay is how long ranks have to end by themselves when their collectives failed,
	// before SIGTERM: long enough for a program to say what happened.
	peerDelay = 2 * second
	// reportWait bounds how long a report waits for the head's answer.
	reportWait = 2 * second
	// ackWait is how long an ending node waits for the head to take its last completions.
	ackWait = 3 * second
	// shipWait bounds how long it waits for the shell to ship the last output.
	shipWait = 5 * second
	// leaseTime: exclusive work ends when no head was heard of for so long. The head does
	// not run it elsewhere before 30 s.
	leaseTime = 20 * second

	defaultGrace = 600 * second
)

// Core is the reactor. It is not safe for concurrent use.
type Core struct {
	cfg  Config
	s    *State
	pool *pool
	out  Output
	now  int64

	// What follows is not kept over a restart: the head's greeting and the supervisor's
	// list bring back what matters of it.
	up      bool // a session is up and the greeting is sent
	welcome bool // and was answered
	noticed bool // what granted the node takes it away
	ends    wire.NodeEnds
	notice  wire.Leaving
	doubts  []doubt         // ends that may be of that
	sent    uint64          // completions up to this number were sent on this session
	started []wire.TryState // to be told at Flush
	// overtaken are the processes whose end came before the news of their start.
	overtaken   map[wire.Proc]bool
	held        map[wire.JobID]string // jobs whose output waits, and why
	reports     []*report             // in the order in which they were made
	waiting     map[uint64]*report
	repSeq      uint64
	repNo       uint64
	early       int // processes whose room was given back before their output was in
	beatAt      int64
	beatLast    int64
	beatBusy    bool // the last beat told of work
	load        float64
	memFree     int64
	rate        int64
	relays      []string
	admitting   bool           // something changed that may let queued tries start
	roomGiven   bool           // room has come free that tasks may want
	kept        wire.Resources // of a gang that did not fit: tasks leave it
	keptUntil   int64
	shipped     bool
	shipAt      int64 // when ShipLogs was given, 0 = not yet
	left        bool
	idleAt      int64 // when an ending node had nothing left to stop
	leases      leases
	grouped     wire.GroupTell // what the head is to be told of groups
	programs    wire.Programs
	detached    map[wire.ObjectID]wire.ActorWill // of this node
	willed      wire.ActorTell                   // what the head is to be told of them
	needed      bool                             // others need values that only this node has
	actors      wire.Resources                   // what they have
	programsDue bool                             // they have changed since the head was told
	portions    map[string]*portion              // by job: what it has of the node
	offers      []offer                          // that wait for their turn
	givesBack   []wire.LeaseBack                 // to be told
	passed      int64                            // when tasks were last told that it is their turn
	owed        bool                             // it is the turn of a try or an offer
}

// New makes a reactor of a state; an empty one is NewState(). A state that was rebuilt
// needs Recovered as its first event.
func New(cfg Config, s *State) *Core {
	c := &Core{cfg: cfg, s: s, waiting: map[uint64]*report{}, leases: newLeases(), portions: map[string]*portion{}, overtaken: map[wire.Proc]bool{}, held: map[wire.JobID]string{}, detached: map[wire.ObjectID]wire.ActorWill{}}
	c.pool = newPool(cfg.Hello.Total, cfg.Hello.GPUs, cfg.CPUs, newTopology(cfg.Hello.Topology))
	c.pool.claims = cfg.Claims
	for _, t := range s.tries {
		for i := range t.Ranks {
			if !t.Ranks[i].Ended {
				c.pool.had(t.need(), t.Ranks[i].Slot)
			}
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.bundles), order) {
		r := s.bundles[id]
		c.pool.had(r.Need, r.Slot)
		c.pool.keepBundle(r)
		c.leases.tasks = c.leases.tasks.Add(r.Need, 1)
	}
	return c
}

func (t *Try) need() wire.Resources { return t.job.spec.Spec.Resources }

// State is what the records so far amount to. It must not be changed.
func (c *Core) State() *State { return c.s }

// Free is what can be handed out now.
func (c *Core) Free() wire.Resources { return c.pool.available() }

// Step takes one event.
func (c *Core) Step(now int64, ev Event) Output {
	c.now = now
	c.out.Records, c.out.Effects = c.out.Records[:0], c.out.Effects[:0]
	if c.s.lost == 0 && !c.up {
		c.record(RecLost{At: now})
	}
	switch ev := ev.(type) {
	case HeadUp:
		if ev.Addr != "" {
			c.cfg.Hello.Addr = ev.Addr
		}
		c.cfg.Hello.Addrs, c.cfg.Hello.Route = ev.Addrs, ev.Route
		c.hello()
	case HeadDown:
		c.headDown()
	case FromHead:
		c.fromHead(ev.Msg)
	case Recovered:
		c.recovered(ev.Procs)
	case ProcStarted:
		c.procStarted(ev)
	case ProcFailed:
		c.procFailed(ev)
	case ProcExited:
		c.procExited(ev)
	case OutputDrained:
		c.outputDrained(ev)
	case RankStopped:
		c.rankStopped(ev.Proc)
	case GroupFailed:
		if t := c.s.byTry[ev.Gang]; t != nil {
			c.fault(t, ev.Rank, ev.Cause)
		}
	case Local:
		c.local(ev)
	case LocalGone:
		if r := c.waiting[ev.Req]; r != nil {
			delete(c.waiting, ev.Req)
			r.req = 0
		}
	case ResourcesChanged:
		c.pool.set(ev.Total, ev.GPUs)
		c.pool.others, c.pool.avoid = ev.Others, ev.Cores
		c.roomGiven = true
		c.cfg.Hello.Total, c.cfg.Hello.GPUs, c.cfg.Hello.Others = ev.Total, ev.GPUs, ev.Others
		c.admitting = true
	case OutputFailed:
		for _, t := range c.s.tries {
			if t.ID.Job == ev.Job && !t.reserved() && t.Stop == nil {
				t.err = ev.Err
				c.stop(t, wire.ReasonNone, 0, t.job.spec.Spec.Grace)
			}
		}
	case OutputHeld:
		if ev.Why == "" {
			delete(c.held, ev.Job)
		} else {
			c.held[ev.Job] = ev.Why
		}
		c.hurry()
	case PythonFound:
		c.cfg.Hello.Python = ev.Python
		c.hurry()
	case NodeTrouble:
		c.cfg.Hello.Why = ev.Why
		c.hurry()
	case DemandChanged:
		c.leases.demand, c.leases.demandDue = wire.Demand{Seen: ev.Seen, Shapes: ev.Shapes}, true
	case LeaseIdle:
		c.leaseIdle(ev)
	case MakeGroup:
		c.makeGroup(ev.Spec)
	case EndGroup:
		c.endGroup(ev.ID, ev.Why)
	case ActorsChanged:
		c.willed.Made = append(c.willed.Made, ev.Told.Made...)
		c.willed.Over = append(c.willed.Over, ev.Told.Over...)
		c.SetActors(ev.Told)
	case ProgramsChanged:
		c.SetPrograms(ev.Programs)
		c.programsDue = true
	case LeaveSoon:
		c.leaveSoon(ev)
	case StopNode:
		c.endWith(ev.Why, ev.Grace)
	case LogsShipped:
		c.shipped = true
	case Tick:
		c.load, c.memFree, c.rate, c.relays = ev.Load1, ev.MemFree, ev.Rate, ev.Relays
		c.timers()
		c.holdOver()
		c.bundlesDue()
		c.offersDue()
		c.admitting = c.admitting || c.Contended() // with time it may be the turn of others
		c.flush()
		c.beat()
	case Flush:
		c.flush()
		if c.beatBusy && len(c.s.tries) == 0 && c.s.queued() == 0 {
			c.hurry() // all is over: the head should not show it for another second
		}
		c.beat()
	}
	if c.admitting {
		c.admitting = false
		c.admit()
	}
	c.ending()
	return c.out
}

// record decides: the decision is written and true.
func (c *Core) record(r Record) {
	c.out.Records = append(c.out.Records, r)
	c.s.Apply(r)
}

func (c *Core) do(e Effect) { c.out.Effects = append(c.out.Effects, e) }

// tell sends a message, if the head has greeted back; what matters is told again in the
// next greeting.
func (c *Core) tell(typ uint16, msg any) {
	if c.welcome {
		c.do(ToHead{Type: typ, Msg: msg})
	}
}

// flush tells the head what a burst of events brought.
func (c *Core) flush() {
	if len(c.started) > 0 {
		c.tell(wire.MsgRunning, wire.Running{Items: c.started})
		c.started = nil // the message keeps the old one
	}
	if c.welcome && c.s.seq > c.sent {
		n := int(min(c.s.seq-c.sent, uint64(len(c.s.unacked))))
		items := append([]wire.Ended(nil), c.s.unacked[len(c.s.unacked)-n:]...)
		c.tell(wire.MsgDone, wire.Done{Seq: c.s.seq, Items: items})
		c.sent = c.s.seq
	}
	c.tellPrograms()
	c.tellBack()
	c.tellActors(false)
	c.tellGroups(false)
	c.tellDemand()
	if !c.leases.told.Equal(c.tasksUse()) {
		c.hurry()
	}
}

// hurry makes the next beat come soon, but never many of them.
func (c *Core) hurry() { c.beatAt = min(c.beatAt, c.beatLast+beatGap) }

func (c *Core) beat() {
	if !c.welcome || c.now < c.beatAt {
		return
	}
	c.beatAt, c.beatLast = c.now+beatEvery, c.now
	running := uint32(0)
	for _, t := range c.s.tries {
		if !t.reserved() {
			running++
		}
	}
	c.leases.told = c.tasksUse()
	b := wire.Beat{Free: c.pool.available().Add(c.unusedLeases(), -1), Tasks: c.leases.told, Lasting: c.lasting(), Needed: c.needed, Queued: c.s.queued(), Running: running, Load1: c.load, MemFree: c.memFree, GPUs: c.pool.gpuList(), Python: c.cfg.Hello.Python, Why: c.cfg.Hello.Why, Rate: c.rate, Relays: c.relays, Others: c.pool.others}
	b.Jobs = c.jobsUse()
	for job, why := range c.held {
		b.Held = append(b.Held, wire.HeldOutput{Job: job, Why: why})
	}
	slices.SortFunc(b.Held, func(x, y wire.HeldOutput) int { return cmp.Compare(x.Job, y.Job) })
	c.beatBusy = len(c.s.tries) > 0 || b.Queued > 0
	c.tell(wire.MsgBeat, b)
}

// timers does what is due by the clock.
func (c *Core) timers() {
	var expired []*Try
	for _, t := range c.s.tries {
		if t.reserved() {
			if c.now >= t.Until {
				expired = append(expired, t)
			}
			continue
		}
		if at := t.limit(); at != 0 && c.now >= at && t.Stop == nil {
			c.stop(t, wire.ReasonTimeLimit, 0, t.job.spec.Spec.Grace)
		}
		if t.job.spec.Spec.Exclusive && t.Stop == nil && c.s.lost != 0 && c.now >= c.s.lost+leaseTime {
			c.stop(t, wire.ReasonFenced, 0, 0)
		}
		c.stopDue(t)
	}
	for _, t := range expired {
		c.release(t)
	}
	c.drainDue()
	c.doubtsDue()
	for _, r := range c.reports {
		if r.req != 0 && c.now >= r.until {
			c.answer(r)
		}
	}
	if c.s.phase.Phase < Ending {
		if c.s.lost != 0 && c.now >= c.s.lost+c.grace() {
			c.end("no head for " + span(c.grace()) + ", which is the grace of this cluster")
		} else if p := c.s.phase; p.Phase == Draining && p.Stop != 0 && c.now >= p.Stop {
			c.stopAll(wire.ReasonPreempted, p.Grace)
			c.record(RecPhase{Phase: Ending, Why: p.Why, At: c.now, Grace: p.Grace})
		}
	}
}

// grace is how long the node lives without a head.
func (c *Core) grace() int64 {
	switch {
	case c.s.grace > 0:
		return c.s.grace
	case c.cfg.Grace > 0:
		return c.cfg.Grace
	}
	return defaultGrace
}

// limit is when a try's time is up; 0 = never.
func (t *Try) limit() int64 {
	if l := t.job.spec.Spec.TimeLimit; l > 0 {
		at := t.At
		for i := range t.Ranks {
			at = max(at, t.Ranks[i].Started)
		}
		return at + l
	}
	return 0
}

// Due is when the core wants its next Tick at the latest; 0 = it need not be ticked.
func (c *Core) Due() int64 {
	var due int64
	want := func(at int64) {
		if at != 0 && (due == 0 || at < due) {
			due = at
		}
	}
	if c.welcome {
		if c.leases.told.Equal(c.tasksUse()) {
			want(c.beatAt)
		} else {
			want(min(c.beatAt, c.beatLast+beatGap))
		}
		if c.leases.demandDue {
			want(c.leases.demandAt)
		}
	}
	if c.s.lost != 0 && c.s.phase.Phase < Ending {
		want(c.s.lost + c.grace())
	}
	for _, t := range c.s.tries {
		want(t.Until)
		if t.reserved() {
			continue
		}
		if t.Stop == nil {
			want(t.limit())
			if t.job.spec.Spec.Exclusive && c.s.lost != 0 {
				want(c.s.lost + leaseTime)
			}
		} else {
			want(t.stopAt())
		}
		for i := range t.Ranks {
			if !t.Ranks[i].Ended {
				want(t.Ranks[i].drainBy)
			}
		}
	}
	for _, r := range c.reports {
		if r.req != 0 {
			want(r.until)
		}
	}
	for _, b := range c.s.bundles {
		want(b.Until)
	}
	for _, d := range c.doubts {
		want(d.until)
	}
	switch c.s.phase.Phase {
	case Draining:
		want(c.s.phase.Stop)
	case Ending:
		if c.idleAt != 0 && c.shipAt == 0 {
			want(c.idleAt + ackWait)
		}
	}
	if c.shipAt != 0 && c.s.phase.Phase != Gone {
		want(c.shipAt + shipWait)
	}
	return due
}

// span writes a duration as a user would: 90s, 10m, 24h.
func span(ns int64) string {
	switch {
	case ns%(3600*second) == 0:
		return utoa(ns/(3600*second)) + "h"
	case ns%(60*second) == 0:
		return utoa(ns/(60*second)) + "m"
	case ns%second == 0:
		return utoa(ns/second) + "s"
	}
	return utoa(ns/millisecond) + "ms"
}

func wireErr(e *errs.Error) *errs.Wire { return errs.ToWire(e) }
