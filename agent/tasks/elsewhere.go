package tasks

import "launcher/wire/sdk"

// refuse lets go of the outputs of an attempt that counts no more.
func (c *Core) refuse(number uint32, res sdk.Result, rest []byte) {
	for i := range res.Values {
		v, _, more, err := sdk.CutGiven(rest)
		if err != nil {
			return
		}
		rest = more
		x := res.Task.With(uint32(i) + 1)
		if o := c.objects[x]; v.Kind == sdk.Elsewhere && (o == nil || o.where != number) {
			for _, r := range c.sortedRemotes() {
				if r.number == number {
					c.letGo(r, x)
				}
			}
		}
	}
}

// elsewhere lets go of the copy that another node has.
func (c *Core) elsewhere(o *object) {
	if o.where != 0 {
		c.letGo(c.byClient[o.at], o.id)
		o.where, o.at = 0, 0
	}
}

// nodes are those that have an object besides this one.
func (o *object) nodes() []uint32 {
	if o.where == 0 {
		return nil
	}
	return []uint32{o.where}
}
