package tasks

import (
	"fmt"
	"slices"
)

// inWork is the task of a level that its worker runs: of an actor that lives, its first call.
func (l *level) inWork() *task {
	switch {
	case len(l.tasks) == 0:
		return nil
	case len(l.tasks) > 1 && l.tasks[0].actor != nil && l.tasks[0].actor.up:
		return l.tasks[1]
	}
	return l.tasks[0]
}

// behind counts the tasks that a worker has to end before it begins one: of calls those of its
// concurrency group, less those that run beside each other.
func behind(t *task) (n int) {
	if !t.isCall() || t.call.host == nil {
		return max(0, slices.Index(t.level.tasks, t))
	}
	g, group := t.call.host.groupOf(t.shape.group)
	for _, x := range t.level.tasks {
		if x == t {
			break
		}
		if x.isCall() {
			if _, of := t.call.host.groupOf(x.shape.group); of == group {
				n++
			}
		}
	}
	return max(0, n+1-g.beside)
}

// whyCall says what a call waits for that has its arguments.
func (c *Core) whyCall(t *task) string {
	g := t.call.callee
	switch {
	case t.call.host != nil:
		ahead := 0
		for _, x := range t.call.lane.calls {
			if x == t {
				break
			}
			if x != nil && x.state == waiting {
				ahead++
			}
		}
		group, _ := t.call.host.groupOf(t.shape.group)
		return fmt.Sprintf("waits for its turn: %d calls are with the actor, %d of the same caller before it", group.given, ahead)
	case g == nil || g.node != 0:
		return fmt.Sprintf("waits until all calls to the life before of actor %s are accounted for", id(t.fn()))
	}
	return fmt.Sprintf("waits for actor %s to be there", g.id)
}
