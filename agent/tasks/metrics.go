package tasks

import (
	"launcher/wire"
	"launcher/wire/sdk"
)

// Numbers are what metrics say of a node's tasks and objects.
type Numbers struct {
	Tasks       map[string]int    // by state, of those that have not ended
	Ended       map[string]uint64 // attempts that ended on this node since the agent began, by state
	Actors      map[string]int    // of this node's programs, by state
	Objects     int
	InlineBytes int64
}

// Numbers counts.
func (c *Core) Numbers() Numbers {
	n := Numbers{Tasks: map[string]int{}, Actors: map[string]int{}, Ended: map[string]uint64{
		wire.TaskDone: c.tally[sdk.ResultOK], wire.TaskCancelled: c.tally[sdk.ResultCancelled],
		wire.TaskFailed: c.tally[sdk.ResultFailed] + c.tally[sdk.ResultRetry],
	}, Objects: len(c.objects)}
	for _, s := range []string{wire.TaskWaiting, wire.TaskQueued, wire.TaskRunning, wire.TaskBlocked} {
		n.Tasks[s] = 0
	}
	for _, s := range []string{wire.ActorPending, wire.ActorAlive, wire.ActorRestarting, wire.ActorDead} {
		n.Actors[s] = 0
	}
	for _, t := range c.tasks {
		if t.actor != nil {
			if t.id.Node() == c.cfg.Number {
				n.Actors[t.actor.state()]++
			}
			continue
		}
		if s := c.stateOf(t); s != wire.TaskDone && !t.isAway() {
			n.Tasks[s]++
		}
	}
	for _, o := range c.objects {
		if o.state == here && o.kind != sdk.Shared {
			n.InlineBytes += o.size
		}
	}
	return n
}
