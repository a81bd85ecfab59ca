package head

import (
	"context"
	"sync"
	"time"

	"launcher/head/core"
	"launcher/internal/errs"
	"launcher/wire"
)

// maxAsked bounds the questions to agents that are open at once.
const maxAsked = 10_000

// asks are the questions that agents have not answered yet. They are no business of the
// core's: nothing is decided, and nothing is remembered.
type asks struct {
	mu   sync.Mutex
	next uint64           // guarded by mu
	open map[uint64]asked // guarded by mu
}

// asked is one question to one agent.
type asked struct {
	conn *agentConn
	got  chan<- told // has room for all answers of a query
}

type told struct {
	node wire.NodeID
	msg  wire.Told
}

func (x *asks) add(c *agentConn, got chan<- told) (uint64, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.open) >= maxAsked {
		return 0, errs.New(errs.Exhausted, "%d questions to agents are open", len(x.open)).Hint("ask again in a moment")
	}
	if x.open == nil {
		x.open = map[uint64]asked{}
	}
	x.next++
	x.open[x.next] = asked{conn: c, got: got}
	return x.next, nil
}

func (x *asks) drop(ids []uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range ids {
		delete(x.open, id)
	}
}

// told takes an answer. One that nobody waits for, or that another agent was asked for,
// is dropped.
func (x *asks) told(c *agentConn, m wire.Told) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if a, ok := x.open[m.ID]; ok && a.conn == c {
		delete(x.open, m.ID)
		a.got <- told{node: c.node, msg: m}
	}
}

// query asks agents and gathers what they answer within the bound.
func (h *head) query(ctx context.Context, q wire.Query, gone <-chan struct{}) (wire.QueryAnswer, error) {
	ans := wire.QueryAnswer{Nodes: map[wire.NodeID]wire.NodeAnswer{}}
	fail := func(n wire.NodeID, e *errs.Error) { ans.Nodes[n] = wire.NodeAnswer{Err: errs.ToWire(e)} }
	conns, err := h.whom(q.Node)
	if err != nil {
		return ans, err
	}
	got := make(chan told, len(conns))
	var ids []uint64
	defer func() { h.asks.drop(ids) }()
	for n, c := range conns {
		if c == nil {
			fail(n, unconnected(n))
			continue
		}
		id, err := h.asks.add(c, got)
		if err != nil {
			return ans, err
		}
		ids = append(ids, id)
		c.send(wire.MsgAsk, wire.Ask{ID: id, What: q.What, Args: q.Args})
	}
	late := time.NewTimer(wire.QueryBound)
	defer late.Stop()
	size, most := int64(0), h.o.maxAnswer
	if most == 0 {
		most = wire.MaxAnswer
	}
	for left := len(ids); left > 0; left-- {
		select {
		case t := <-got:
			a := wire.NodeAnswer{JSON: t.msg.JSON, Err: t.msg.Err}
			if size += int64(len(a.JSON)); size > most {
				size -= int64(len(a.JSON))
				fail(t.node, errs.New(errs.Exhausted, "the answers of all nodes are more than %s", wire.Bytes(most)).Hint("ask one node: --node %s", t.node))
				continue
			}
			ans.Nodes[t.node] = a
		case <-late.C:
			for n := range conns {
				if _, ok := ans.Nodes[n]; !ok {
					fail(n, errs.New(errs.Timeout, "node %s did not answer within %s", n, time.Duration(wire.QueryBound)))
				}
			}
			return ans, nil
		case <-gone:
			return ans, errs.New(errs.Cancelled, "nobody waits for the answer any more")
		case <-ctx.Done():
			return ans, errEnding()
		}
	}
	return ans, nil
}

// whom gives the connections of the nodes to ask, nil where there is none.
func (h *head) whom(node wire.NodeID) (map[wire.NodeID]*agentConn, error) {
	out := map[wire.NodeID]*agentConn{}
	known := false
	ok := h.do(func(c *core.Core) {
		for _, n := range c.Members() {
			if node == "" || n == node {
				known = true
				out[n] = h.current[n]
			}
		}
	})
	switch {
	case !ok:
		return nil, errEnding()
	case node != "" && !known:
		return nil, errs.New(errs.NotFound, "there is no node %s", node).Hint("`launcher nodes` lists them")
	}
	return out, nil
}

func unconnected(n wire.NodeID) *errs.Error {
	return errs.New(errs.Unavailable, "node %s has no connection to the head", n).Hint("`launcher nodes` shows how it is")
}
