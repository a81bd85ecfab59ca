package tasks

import "fmt"

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
