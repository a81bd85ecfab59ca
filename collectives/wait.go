package collectives

import (
	"fmt"
	"sync/atomic"
	"time"

	"launcher/collectives/plan"
	"launcher/shm"
)

// How a rank waits for a word of another: it looks at it again and again for spinFor,
// when every local rank has a core of its own; otherwise, and when it waits for the
// agent, which has none, it lets others run yields times. Then it sleeps in the kernel until the word changes, for at most napMax at a
// time, because a wake-up may be missed when the other side is Python on a processor
// that delays stores, and because the state word has to be looked at.
const (
	spinFor = 200 * time.Microsecond
	yields  = 200
	napMin  = time.Millisecond
	napMax  = 100 * time.Millisecond
	// leftGrace is how long a rank that has left may take to come back (a program that
	// closes its group and joins again) before waiting for it is an error.
	leftGrace = time.Second
	// agentGrace is how much longer ranks wait for other nodes than for each other: the
	// node at fault then has said which of its ranks it is.
	agentGrace = 3 * time.Second
)

// wait returns when *word >= target, or with the error that the group ended with. who is
// the participant that writes the word.
func (c *Comm) wait(word *uint64, target uint64, who int) error {
	if atomic.LoadUint64(word) >= target {
		return nil
	}
	return c.waitLong(word, target, who)
}

func (c *Comm) waitLong(word *uint64, target uint64, who int) error {
	start := time.Now()
	if c.spin && who != c.m.n {
		for time.Since(start) < spinFor {
			for range 64 {
				if atomic.LoadUint64(word) >= target {
					return nil
				}
				pause()
			}
			if atomic.LoadUint32(&c.m.h.state) != 0 {
				return c.lost(word, target)
			}
		}
	} else {
		for range yields {
			yield()
			if atomic.LoadUint64(word) >= target {
				return nil
			}
			if atomic.LoadUint32(&c.m.h.state) != 0 {
				return c.lost(word, target)
			}
		}
	}
	timeout := c.m.timeout()
	if who == c.m.n {
		timeout += agentGrace
	}
	asleep := &c.m.sleepers[c.me]
	atomic.StoreUint32(asleep, 1)
	defer atomic.StoreUint32(asleep, 0)
	for nap := napMin; ; nap = min(2*nap, napMax) {
		v := atomic.LoadUint64(word)
		if v >= target {
			return nil
		}
		if atomic.LoadUint32(&c.m.h.state) != 0 {
			return c.lost(word, target)
		}
		waited := time.Since(start)
		if atomic.LoadUint32(&c.m.controls[who].left) != 0 && waited > leftGrace && atomic.LoadUint64(word) < target {
			rank := int(c.m.h.first) + who
			c.m.end(c.me, kindLost, rank, fmt.Sprintf("it left the group; rank %d still waited for it in %s", c.rank, c.current()))
			return c.m.ended()
		}
		if waited >= timeout {
			c.giveUp(who, timeout)
			return c.m.ended()
		}
		shm.FutexWait(low(word), uint32(v), min(nap, timeout-waited))
	}
}

// lost gives why the group ended, but what had been done by then counts: a rank that
// took part in this operation to its end may have exited since.
func (c *Comm) lost(word *uint64, target uint64) error {
	if atomic.LoadUint64(word) >= target {
		return nil
	}
	return c.m.ended()
}

// giveUp ends the group because participant who did not come.
func (c *Comm) giveUp(who int, timeout time.Duration) {
	if who == c.m.n {
		c.m.end(c.me, kindTimeout, -1, fmt.Sprintf("rank %d waited %v in %s for the other nodes", c.rank, timeout, c.current()))
		return
	}
	rank := int(c.m.h.first) + who
	what := "has not called it"
	if atomic.LoadUint32(&c.m.controls[who].pid) == 0 {
		what = "has not joined the group"
	}
	c.m.end(c.me, kindTimeout, rank, fmt.Sprintf("rank %d %s: rank %d waited %v in %s", rank, what, c.rank, timeout, c.current()))
}

// current is the operation that this rank is in, in words.
func (c *Comm) current() string {
	return fmt.Sprintf("operation %d, %s", c.seq, plan.FromSignature(c.m.controls[c.me].sig[c.seq&1]))
}

// arrive publishes the start of the next operation and waits for everybody's. in and
// out are offsets of its buffers in the memory, 0 for private ones. When it returns, all
// local ranks have finished the operation before, and have called the same now.
func (c *Comm) arrive(call plan.Call, in, out uint64) error {
	c.announce(call, in, out)
	return c.meet(call)
}

// announce is the first half of arrive: what this rank wrote before is visible to whom
// sees it.
func (c *Comm) announce(call plan.Call, in, out uint64) {
	c.seq++
	ctl := c.m.controls[c.me]
	p := c.seq & 1
	ctl.sig[p], ctl.in[p], ctl.out[p] = call.Signature(), in, out
	c.post()
}

// meet is the second half.
func (c *Comm) meet(call plan.Call) error {
	sig, p := call.Signature(), c.seq&1
	for i, ctl := range c.m.controls[:c.m.n] {
		if i == c.me {
			continue
		}
		if err := c.wait(&ctl.step, c.step, i); err != nil {
			return err
		}
		if ctl.sig[p] != sig {
			return c.disagree(i, call)
		}
	}
	return nil
}

// disagree ends the group because local rank i called something else.
func (c *Comm) disagree(i int, call plan.Call) error {
	theirs := plan.FromSignature(c.m.controls[i].sig[c.seq&1])
	rank := int(c.m.h.first) + i
	c.m.end(c.me, kindMismatch, rank, fmt.Sprintf("in operation %d rank %d called %s, rank %d called %s", c.seq, c.rank, call, rank, theirs))
	return c.m.ended()
}

// post publishes what this rank wrote so far: one step.
func (c *Comm) post() {
	c.step++
	c.m.post(&c.m.controls[c.me].step, c.step)
}

// all waits until every local rank has made as many steps.
func (c *Comm) all(step uint64) error {
	for i, ctl := range c.m.controls[:c.m.n] {
		if err := c.wait(&ctl.step, step, i); err != nil {
			return err
		}
	}
	return nil
}
