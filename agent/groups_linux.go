package agent

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"launcher/agent/core"
	"launcher/collectives"
	"launcher/internal/errs"
	"launcher/wire"
)

// node is what the agent needs of its part of a group; *collectives.Node is one.
type node interface {
	File() *os.File
	Abort(rank int, cause string)
	Leave(rank int)
	Accept(conn net.Conn, from wire.NodeID, lane uint32) error
	Run(ctx context.Context) error
	Answer(rank int) *collectives.JoinAnswer
	Close() error
}

// groups are the collectives of this node's gangs.
type groups struct {
	a   *agent
	ctx context.Context // of what runs for groups
	end context.CancelFunc
	wg  sync.WaitGroup

	mu    sync.Mutex
	open_ map[wire.Try]*group // guarded by mu
	pids  map[wire.Proc][]int // main process and whoever joined for it; guarded by mu
	some  chan struct{}       // told when there is a group to watch
}

type group struct {
	id    wire.Try
	n     node
	first uint32
	count uint32
	watch bool // others wait for a rank that is stopped
	stop  context.CancelFunc
}

// groupName is the name under which the supervisor keeps a group's memory.
func groupName(t wire.Try) string { return "group/" + t.String() }

func newGroups(a *agent) *groups {
	g := &groups{a: a, open_: map[wire.Try]*group{}, pids: map[wire.Proc][]int{}, some: make(chan struct{}, 1)}
	g.ctx, g.end = context.WithCancel(context.Background())
	return g
}

// open makes the memory of a group, or takes up that of an earlier agent.
func (g *groups) open(ctx context.Context, e core.OpenGroup) {
	g.mu.Lock()
	_, have := g.open_[e.Gang]
	g.mu.Unlock()
	if have {
		return
	}
	rctx, stop := context.WithCancel(g.ctx)
	x := &group{id: e.Gang, first: e.First, count: e.Count, watch: e.World > 1, stop: stop}
	n, err := g.make(ctx, x, e)
	x.n = n
	if err != nil {
		stop()
		if g.a.lostSupervisor(ctx) {
			return
		}
		g.a.log.Error("no collectives for a gang", "gang", e.Gang, "err", err)
		g.a.events.push(core.GroupFailed{Gang: e.Gang, Rank: -1, Cause: "node " + string(g.a.cfg.Node) + ": " + err.Error()})
		return
	}
	g.mu.Lock()
	g.open_[e.Gang] = x
	g.mu.Unlock()
	g.wg.Go(func() {
		// Ended tells the core when the group fails; what Run returns is the same again.
		_ = n.Run(rctx)
		<-rctx.Done()
		_ = n.Close()
	})
	select {
	case g.some <- struct{}{}:
	default:
	}
}

func (g *groups) make(ctx context.Context, x *group, e core.OpenGroup) (node, error) {
	cfg := collectives.NodeConfig{Group: e.Gang, Nodes: e.Nodes, Self: g.a.cfg.Node, CPUs: g.a.cores, Log: g.a.log,
		Dial: func(ctx context.Context, to wire.GangNode, lane uint32) (net.Conn, error) {
			return g.a.peers.dial(ctx, e.Gang, to, lane)
		},
		Ended: func(err error) { g.failed(x, err) },
	}
	if len(cfg.Nodes) == 0 {
		cfg.Nodes = []wire.GangNode{{Node: g.a.cfg.Node, Count: 1}}
	}
	name := groupName(e.Gang)
	if f := g.a.take(name); f != nil {
		return collectives.Restore(cfg, f)
	}
	n, err := collectives.NewNode(cfg)
	if err != nil {
		return nil, err
	}
	if err := g.a.super.StoreFD(ctx, name, n.File()); err != nil {
		_ = n.Close()
		return nil, err
	}
	return n, nil
}

// leftCause begins the cause of a group that ended because a rank had exited well.
const leftCause = "it left the group"

// failed tells the core that a collective cannot go on, and whose failure that is.
func (g *groups) failed(x *group, err error) {
	ev := core.GroupFailed{Gang: x.id, Rank: -1, Cause: err.Error()}
	var lost *collectives.PeerLost
	var late *collectives.Timeout
	var differ *collectives.Mismatch
	switch {
	case errors.As(err, &lost) && strings.HasPrefix(lost.Cause, leftCause):
		// The one that left did nothing wrong that its exit code would tell: what fails is
		// whoever still waits here.
		if ev.Rank = x.other(lost.Rank); ev.Rank < 0 {
			return
		}
		ev.Cause = "rank " + strconv.Itoa(lost.Rank) + strings.TrimPrefix(lost.Cause, "it")
	case errors.As(err, &lost):
		ev.Rank, ev.Cause = int32(lost.Rank), lost.Cause
	case errors.As(err, &late):
		if ev.Rank = int32(late.Rank); ev.Rank < 0 {
			ev.Rank = x.other(-1)
		}
	case errors.As(err, &differ):
		ev.Rank = int32(differ.Rank)
	}
	g.a.events.push(ev)
}

// other is a rank of this node that is not the given one; -1 = there is none.
func (x *group) other(rank int) int32 {
	for i := range x.count {
		if r := x.first + i; int(r) != rank {
			return int32(r)
		}
	}
	return -1
}

func (g *groups) find(gang wire.Try) *group {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open_[gang]
}

func (g *groups) abort(e core.AbortGroup) {
	if x := g.find(e.Gang); x != nil {
		x.n.Abort(int(e.Rank), e.Cause)
	}
}

func (g *groups) leave(e core.LeaveGroup) {
	if x := g.find(e.Gang); x != nil {
		x.n.Leave(int(e.Rank))
	}
}

// closeGroup frees a group's memory: no rank of it is left here.
func (g *groups) closeGroup(gang wire.Try) {
	g.mu.Lock()
	x := g.open_[gang]
	delete(g.open_, gang)
	g.mu.Unlock()
	if x != nil {
		x.stop()
		_ = g.a.super.DropFD(groupName(gang))
	}
}

// close ends the traffic of all groups; their memory stays with the supervisor.
func (g *groups) close() {
	g.end()
	g.wg.Wait()
}

// accept takes a connection of another node of a group. A node that has not heard of the
// group yet is asked again.
func (g *groups) accept(open wire.RingOpen, conn net.Conn, welcome func() error) error {
	x := g.find(open.Gang)
	if x == nil {
		return errs.New(errs.Unavailable, "node %s knows no group %s, or not any more", g.a.cfg.Node, open.Gang)
	}
	if err := welcome(); err != nil {
		return err
	}
	return x.n.Accept(conn, open.From, open.Lane)
}

// join gives a rank its group's memory and what it must know of it. pid is the process
// that asked, by the kernel's word.
func (g *groups) join(j *core.Join, p wire.Proc, pid int) (*collectives.JoinAnswer, *os.File, error) {
	x := g.find(j.Gang)
	if x == nil {
		return nil, nil, errs.New(errs.Fenced, "the group of %s is gone", j.Gang)
	}
	ans := x.n.Answer(int(j.Rank))
	if ans == nil {
		return nil, nil, errs.New(errs.Internal, "rank %d is not one of group %s on node %s", j.Rank, j.Gang, g.a.cfg.Node)
	}
	if pid > 0 {
		g.started(p, pid)
	}
	return ans, x.n.File(), nil
}

// started notes the process of a rank.
func (g *groups) started(p wire.Proc, pid int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range g.pids[p] {
		if k == pid {
			return
		}
	}
	g.pids[p] = append(g.pids[p], pid)
}

func (g *groups) exited(p wire.Proc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.pids, p)
}

const (
	lookEvery = 300 * time.Millisecond
	// stoppedFor is how long a rank is stopped before its gang is told: a shell's job
	// control or a debugger may stop it for a moment.
	stoppedFor = time.Second
)

// watch looks, while there are groups, for ranks that do not run because somebody
// stopped them. What waits or computes is in another state and is never touched.
func (g *groups) watch(ctx context.Context) {
	since := map[wire.Proc]time.Time{}
	tick := time.NewTicker(lookEvery)
	tick.Stop()
	defer tick.Stop()
	for {
		ranks := g.watched()
		if len(ranks) == 0 {
			tick.Stop()
			clear(since)
			select {
			case <-ctx.Done():
				return
			case <-g.some:
			}
			tick.Reset(lookEvery)
		}
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for p := range since {
				if _, ok := ranks[p]; !ok {
					delete(since, p)
				}
			}
			for p, pids := range ranks {
				if !anyStopped(pids) {
					delete(since, p)
				} else if first, ok := since[p]; !ok {
					since[p] = now
				} else if now.Sub(first) >= stoppedFor {
					delete(since, p)
					g.a.events.push(core.RankStopped{Proc: p})
				}
			}
		}
	}
}

// watched gives the processes of all ranks of groups that others wait in.
func (g *groups) watched() map[wire.Proc][]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out map[wire.Proc][]int
	for _, x := range g.open_ {
		if !x.watch {
			continue
		}
		for r := range x.count {
			p := wire.Proc{Try: x.id, Rank: x.first + r}
			if pids := g.pids[p]; len(pids) > 0 {
				if out == nil {
					out = map[wire.Proc][]int{}
				}
				out[p] = append([]int(nil), pids...)
			}
		}
	}
	return out
}

// anyStopped reports whether one of the processes is in state T.
func anyStopped(pids []int) bool {
	for _, pid := range pids {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if err != nil {
			continue
		}
		// The name, in parentheses, may hold anything.
		rest := string(b)
		if i := strings.LastIndexByte(rest, ')'); i >= 0 && i+2 < len(rest) && rest[i+2] == 'T' {
			return true
		}
	}
	return false
}
