package collectives

import "launcher/wire"

// Frames between a rank and its agent on agent.sock. The rank sends MsgJoin with a
// JoinRequest, the agent answers MsgJoined with a JoinAnswer, the descriptor of the
// group's memory on the frame's first byte; or wire.MsgError. Bodies are JSON, so that
// an SDK needs no msgpack for it.
const (
	MsgJoin   uint16 = 0x0401
	MsgJoined uint16 = 0x0402
)

// JoinRequest asks to be a rank. Proc is wire.Proc.String(), the value of LAUNCHER_PROC.
type JoinRequest struct {
	Proc string `json:"proc"`
}

// JoinAnswer says who the caller is in the group.
type JoinAnswer struct {
	Rank       int    `json:"rank"`
	World      int    `json:"world"`
	LocalRank  int    `json:"local_rank"`
	LocalWorld int    `json:"local_world"`
	Node       int    `json:"node"`
	Nodes      int    `json:"nodes"`
	Group      string `json:"group"` // JOB.INDEX#ATTEMPT; a new attempt is a new group
	TimeoutNS  int64  `json:"timeout_ns"`
	Size       int64  `json:"size"` // of the memory
}

// Answer is what to tell a rank of this node that wants to join; nil when the rank is
// not one of this node's.
func (n *Node) Answer(rank int) *JoinAnswer {
	if !n.hold() {
		return nil
	}
	defer n.free()
	h := n.m.h
	local := rank - int(h.first)
	if local < 0 || local >= n.m.n {
		return nil
	}
	return &JoinAnswer{Rank: rank, World: int(h.world), LocalRank: local, LocalWorld: n.m.n, Node: int(h.node), Nodes: int(h.nodes),
		Group:     wire.Try{Task: wire.Task{Job: wire.JobID(h.job), Index: h.index}, Attempt: wire.Attempt(h.attempt)}.String(),
		TimeoutNS: int64(h.timeout), Size: int64(h.size)}
}
