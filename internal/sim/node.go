package sim

import (
	"fmt"
	"slices"

	agent "launcher/agent/core"
	"launcher/head/core"
	"launcher/wire"
)

// machine is one life of a node: a supervisor with its process table and the agent's
// journal in memory, and the agents that come and go above it.
type machine struct {
	w         *world
	id        wire.NodeID
	epoch     wire.Epoch
	token     string
	alive     bool
	knownDead int64 // from when the backend can tell
	died      int64
	total     wire.Resources
	skew      int64 // its clock minus the head's

	procs   map[wire.Proc]*proc
	order   []wire.Proc
	journal [][]byte

	core    *agent.Core
	life    int // of the agent
	up      bool
	started bool // has had an agent before
	conn    *conn
	away    int64 // no connection before
	due     int64
	flush   bool
	reqs    uint64
	tasks   *tasks
}

// proc is an entry of the supervisor's table.
type proc struct {
	id      wire.Proc
	need    wire.Resources
	start   int64
	running bool
	code    int32
	signal  int32
	exitAt  int64
	term    bool
	acked   bool
}

func newMachine(w *world, id wire.NodeID, epoch wire.Epoch, token string) *machine {
	m := &machine{w: w, id: id, epoch: epoch, token: token, alive: true, total: wire.Resources{CPU: int64(1+w.rng.IntN(4)) * wire.Unit, Memory: 1 << 30},
		procs: map[wire.Proc]*proc{}}
	if !w.opt.Calm {
		m.skew = w.between(-2*second, 2*second)
	}
	m.total.CPU = 4 * wire.Unit
	m.tasks = newTasks(m)
	w.after(w.between(10*millisecond, 300*millisecond), func() { m.startAgent() })
	return m
}

func (m *machine) name() string { return fmt.Sprintf("%s@%d", m.id, m.epoch) }

func (m *machine) clock() int64 { return m.w.now + m.skew }

// startAgent is what the supervisor does at first and after each death of the agent.
func (m *machine) startAgent() {
	if !m.alive || m.up {
		return
	}
	w := m.w
	m.life++
	m.up, m.conn, m.due, m.flush = true, nil, 0, false
	s := agent.NewState()
	for i, b := range m.journal {
		r, err := agent.Decode(b)
		if err != nil {
			w.fail("%s: record %d of the agent's journal: %v", m.name(), i, err)
			return
		}
		s.Apply(r)
	}
	cfg := agent.Config{Hello: wire.Hello{Node: m.id, Epoch: m.epoch, Pool: "local", Token: m.token, Host: "sim", Addr: string(m.id) + ":1", Total: m.total},
		CPUs: []int{0, 1, 2, 3}, Grace: 600 * second, Binary: "launcher", Socket: "/s", Cluster: "sim", Dir: "/n"}
	m.core = agent.New(cfg, s)
	m.tasks.restarted() // before anything else can take the room
	w.trace("%s agent starts, life %d", m.name(), m.life)
	if m.started {
		var list []agent.ProcInfo
		var again []*proc
		for _, id := range m.order {
			if p := m.procs[id]; !p.acked {
				list = append(list, agent.ProcInfo{Proc: id, PID: 1, At: p.start + m.skew, Exited: !p.running})
				if !p.running {
					again = append(again, p)
				}
			}
		}
		m.step(agent.Recovered{Procs: list})
		for _, p := range again {
			m.tellExit(p, 0)
		}
	}
	m.started = true
	m.tick()
	m.connectAfter(w.between(0, 100*millisecond))
}

// crashAgent kills the agent; its supervisor starts the next.
func (m *machine) crashAgent() {
	if !m.up {
		return
	}
	m.w.fault("agent", "%s", m.name())
	m.agentGone()
	m.w.after(m.w.between(20*millisecond, 500*millisecond), m.startAgent)
}

func (m *machine) agentGone() {
	m.up = false
	m.life++
	if c := m.conn; c != nil {
		m.conn = nil
		c.cut(0)
	}
}

// die kills the supervisor: everything on the node is dead. With proof the backend
// notices soon, else only long after.
func (m *machine) die(proof bool) {
	if !m.alive {
		return
	}
	m.w.fault("node", "%s dies, proof %v", m.name(), proof)
	m.kill()
	m.knownDead = m.w.now + m.w.between(10*millisecond, 2*second)
	if !proof {
		m.knownDead = m.w.now + 40*second
	}
}

// end is the backend's cancel.
func (m *machine) end() {
	m.kill()
	m.knownDead = m.w.now + m.w.between(millisecond, 200*millisecond)
}

func (m *machine) kill() {
	m.alive, m.died = false, m.w.now
	for _, id := range m.order {
		if p := m.procs[id]; p.running {
			p.running, p.exitAt = false, m.w.now
			m.w.laws.exited(m, p, true)
		}
	}
	m.agentGone()
}

// cut breaks the node's connection, and keeps it away for a while.
func (m *machine) cut(quiet int64) {
	m.w.fault("net", "%s away for %d ms", m.name(), quiet/millisecond)
	m.away = max(m.away, m.w.now+quiet)
	if m.conn != nil {
		m.conn.cut(quiet)
	}
}

func (m *machine) connectAfter(d int64) {
	w, life := m.w, m.life
	w.after(max(d, m.away-w.now), func() {
		if m.life != life || !m.up || m.conn != nil {
			return
		}
		if !w.head.alive || w.now < m.away {
			m.connectAfter(w.between(50*millisecond, 500*millisecond))
			return
		}
		m.conn = &conn{w: w, m: m, life: m.life, head: w.head.life}
		m.step(agent.HeadUp{})
	})
}

func (m *machine) headGone() { m.step(agent.HeadDown{Why: "connection lost"}) }

func (m *machine) headSays(msg any) { m.step(agent.FromHead{Msg: msg}) }

// step gives the agent an event. The journal is in memory that outlives it, so a record
// is safe at once; a crash in the middle is one between record and effect, too.
func (m *machine) step(ev agent.Event) {
	if !m.up || m.w.err != nil {
		return
	}
	out := m.core.Step(m.clock(), ev)
	records, effects := slices.Clone(out.Records), slices.Clone(out.Effects)
	w := m.w
	crash := -1
	if !w.opt.Calm && w.now < w.calmAt-30*second && len(records) > 0 && w.rng.IntN(400) == 0 {
		crash = w.rng.IntN(len(records) + len(effects) + 1)
	}
	for _, r := range records {
		if crash == 0 {
			m.crashAgent()
			return
		}
		crash--
		m.journal = append(m.journal, agent.Encode(nil, r))
	}
	for _, e := range effects {
		if crash == 0 {
			m.crashAgent()
			return
		}
		crash--
		m.perform(e)
	}
	if m.up && !m.flush {
		if _, ok := ev.(agent.Flush); !ok {
			m.flush = true
			life := m.life
			w.after(w.between(0, 2*millisecond), func() {
				if m.life == life {
					m.flush = false
					m.step(agent.Flush{})
				}
			})
		}
	}
	m.tick()
}

func (m *machine) tick() {
	if !m.up {
		return
	}
	at := m.core.Due()
	if at == 0 || m.due != 0 && m.due <= at {
		return
	}
	m.due = at
	life := m.life
	m.w.after(max(at-m.clock(), millisecond), func() {
		if m.life == life && m.due == at {
			m.due = 0
			m.step(agent.Tick{})
		}
	})
}

func (m *machine) perform(e agent.Effect) {
	w, life := m.w, m.life
	later := func(d int64, ev agent.Event) {
		w.after(d, func() {
			if m.life == life {
				m.step(ev)
			}
		})
	}
	switch e := e.(type) {
	case agent.ToHead:
		if m.conn != nil {
			msg := e.Msg
			if r, ok := msg.(wire.Reserved); ok && r.OK {
				r.Port, r.Addr = 1000, string(m.id)
				msg = r
			}
			w.trace("%s -> head %s", m.name(), brief{msg})
			m.conn.toHead(msg)
			w.laws.room(m)
		}
	case agent.Spawn:
		m.spawn(e, later)
	case agent.Signal:
		m.signal(e)
	case agent.AckExit:
		if p := m.procs[e.Proc]; p != nil {
			if p.running {
				w.fail("%s acknowledged the exit of %s, which runs", m.name(), e.Proc)
			}
			p.acked = true
		}
	case agent.LeaseTaken, agent.LeaseLess, agent.LeasesEnd, agent.NoRoomEver:
		m.tasks.effect(e)
	case agent.LocalReply:
		// A program that is told to leave does so.
		if e.Leave != "" {
			w.load.told(m, e.Req)
		}
	case agent.ShipLogs:
		later(w.between(millisecond, 100*millisecond), agent.LogsShipped{})
	case agent.HangUp:
		w.trace("%s hangs up: %s", m.name(), e.Why)
		if m.conn != nil {
			m.conn.cut(0)
		}
	case agent.Leave:
		w.trace("%s leaves: %s", m.name(), e.Why)
		for _, id := range m.order {
			if m.procs[id].running {
				w.fail("%s left and %s still runs", m.name(), id)
			}
		}
		m.kill()
		m.knownDead = w.now
		h, hl := w.head, w.head.life
		w.after(w.between(millisecond, 50*millisecond), func() {
			if h.life == hl && h.alive {
				h.step(core.AgentDown{Node: m.id, Epoch: m.epoch, Proof: true, Cause: "it left"})
			}
		})
	}
}

// spawn starts a process, unless the supervisor has one of that name: an order that an
// earlier agent gave is not carried out twice.
func (m *machine) spawn(e agent.Spawn, later func(int64, agent.Event)) {
	w := m.w
	p := m.procs[e.Proc]
	if p == nil {
		p = &proc{id: e.Proc, need: e.Job.Spec.Resources, start: w.now, running: true}
		m.procs[e.Proc] = p
		m.order = append(m.order, e.Proc)
		w.trace("%s starts %s", m.name(), e.Proc)
		w.laws.startedProc(m, p)
		d, code := w.load.fate(e.Proc)
		w.after(d, func() { m.exit(p, code, 0) })
		w.load.spawned(m, p, e)
	}
	later(w.between(100_000, 2*millisecond), agent.ProcStarted{Proc: e.Proc, PID: 1, At: p.start + m.skew})
}

// exit ends a process.
func (m *machine) exit(p *proc, code, signal int32) {
	if !p.running {
		return
	}
	p.running, p.exitAt, p.code, p.signal = false, m.w.now, code, signal
	if signal != 0 {
		p.code = 128 + signal
	}
	m.w.trace("%s: %s ends, code %d", m.name(), p.id, p.code)
	m.w.laws.exited(m, p, false)
	m.tellExit(p, m.w.between(0, 2*millisecond))
}

// tellExit tells the agent that is there; the next one asks.
func (m *machine) tellExit(p *proc, d int64) {
	life := m.life
	ex := agent.ProcExited{Proc: p.id, Code: p.code, Signal: p.signal, At: p.exitAt + m.skew}
	first, then := agent.Event(ex), agent.Event(agent.OutputDrained{Proc: p.id, LogEnd: 100})
	if m.w.rng.IntN(2) == 0 {
		first, then = then, first
	}
	m.w.after(d, func() {
		if m.life == life {
			m.step(first)
		}
		if m.life == life {
			m.step(then)
		}
	})
}

func (m *machine) signal(e agent.Signal) {
	p := m.procs[e.Proc]
	if p == nil || !p.running {
		return
	}
	w := m.w
	switch {
	case e.Sig == 9:
		w.after(w.between(0, millisecond), func() { m.exit(p, 0, 9) })
	case p.term:
	case w.rng.IntN(5) == 0:
		p.term = true // it does not listen
	default:
		p.term = true
		w.after(w.between(millisecond, 3*second), func() { m.exit(p, 0, e.Sig) })
	}
}
