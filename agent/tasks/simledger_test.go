package tasks

import (
	"fmt"
	"slices"
	"testing"
)

// ledger is what really happened, written down outside of the agents: which processes ran
// what, when they lived, and what they gave. Whatever programs are told must agree with it.
type ledger struct {
	t      testing.TB
	now    int64
	serial uint64
	actors map[id]*simActor
	tasks  map[id]*simTask

	silences int // connections given up, nodes taken for dead
	orphaned bool
	lostNode bool // a node died, or what it owns could not be had
	codes    map[string]int
	lives    int
	calls    int // begun
	twice    int // of them, those that were begun again
}

// simActor is an actor that some program has made.
type simActor struct {
	id    id
	kind  *actorKind
	lives []*simLife
	downs int  // processes of it that ended
	deps  []id // of its creation
	ended []simEnd
	over  string // why it may be dead; "" = it must live, as far as it may be restarted
	first map[simLane]uint64
}

// simLife is one process of an actor, from the beginning of its constructor on.
type simLife struct {
	*simActor
	on   string
	up   bool
	over bool
	last map[simLane]uint64
	left map[string]int // places in its groups
	kept []id           // handles that its instance has
	ends bool           // it has ended by its own will
}

// simLane is whose calls are begun in order.
type simLane struct {
	node, client uint32
	group        string
}

// simTask is a call, or a task that does what calls do.
type simTask struct {
	id      id
	actor   *simActor // of a call
	group   string
	retries int32
	deps    []id
	begins  int
	asked   int  // ends that asked for another run
	lost    int  // times that its results were lost
	cancel  bool // it was asked for
	downs   int  // of its actor, and silences, when it was submitted
	ended   []simEnd
	items   []simEnd
	lives   []*simLife // that began it
}

// simEnd is what a run has given.
type simEnd struct {
	n   uint64
	bad bool
}

func newLedger(t testing.TB) *ledger {
	return &ledger{t: t, actors: map[id]*simActor{}, tasks: map[id]*simTask{}, codes: map[string]int{}}
}

// next is a value that nothing else has.
func (l *ledger) next() uint64 { l.serial++; return l.serial }

func (l *ledger) made(x id, k *actorKind) {
	l.actors[x] = &simActor{id: x, kind: k, first: map[simLane]uint64{}}
}

func (l *ledger) submitted(t *simTask) {
	if t.actor != nil {
		t.downs = t.actor.downs + l.silences
	}
	l.tasks[t.id] = t
}

// born: a process begins a constructor.
func (l *ledger) born(x id, on string) *simLife {
	a := l.actors[x]
	if n := len(a.lives); a.kind.restarts >= 0 && n > a.kind.restarts {
		l.t.Fatalf("life %d of actor %s, which may be restarted %d times", n+1, x, a.kind.restarts)
	}
	if a.kind.exclusive {
		for _, o := range a.lives {
			if !o.over {
				l.t.Fatalf("exclusive actor %s lives %s and %s at %d s", x, o.on, on, l.now/second)
			}
		}
	}
	v := &simLife{simActor: a, on: on, last: map[simLane]uint64{}, left: map[string]int{"": max(1, a.kind.most)}}
	for g, n := range a.kind.groups {
		v.left[g] = n
	}
	a.lives = append(a.lives, v)
	l.lives++
	return v
}

// begins: a process begins a call or a task; v is nil of a task.
func (l *ledger) begins(v *simLife, x id) {
	t := l.tasks[x]
	if t.begins++; t.actor == nil {
		return
	}
	l.calls++
	if t.begins > 1 {
		l.twice++
	}
	switch {
	case v == nil || v.simActor != t.actor:
		l.t.Fatalf("call %s to actor %s is begun by another", x, t.actor.id)
	case !v.up:
		l.t.Fatalf("call %s is begun before its actor is up", x)
	case v.over:
		l.t.Fatalf("call %s is begun by a process that is dead", x)
	case t.retries >= 0 && t.begins > int(t.retries)+1+t.lost:
		l.t.Fatalf("call %s was begun %d times, with %d retries", x, t.begins, t.retries)
	case t.actor.kind.unordered:
		return
	}
	k := simLane{x.Node(), x.Client(), t.group}
	// It asked for another run, a result of it was lost, or what became of it could not be found out.
	again := t.asked+t.lost > 0 || t.retries != 0 && l.silences > 0
	if n := v.last[k]; !again && !slices.Contains(t.lives, v) && x.N() <= n {
		l.t.Fatalf("call %s is begun after number %d of its caller, in one life", x, n)
	}
	v.last[k] = max(v.last[k], x.N())
	t.lives = append(t.lives, v)
	if v != t.actor.lives[len(t.actor.lives)-1] {
		return // it was taken for dead, and may go on with what it has until its owner is heard
	}
	if n := t.actor.first[k]; t.begins == 1 && !again && x.N() <= n {
		l.t.Fatalf("call %s is begun after number %d of its caller, which was begun in an earlier life", x, n)
	}
	t.actor.first[k] = max(t.actor.first[k], x.N())
}

// died: a process of an actor is gone.
func (l *ledger) died(v *simLife) { v.over = true }

// over: an actor may be dead from now on.
func (a *simActor) ends(why string) {
	if a.over == "" {
		a.over = why
	}
}

// judge says what is wrong with what a program was told of a task; "" = nothing.
func (l *ledger) judge(x id, v value) string {
	why := l.doubt(x, v, 0)
	if why == "" && v.bad {
		l.codes[v.code]++
	}
	return why
}

func (l *ledger) doubt(x id, v value, deep int) string {
	t := l.tasks[x.Task()]
	if t == nil {
		return "nobody submitted it"
	}
	if !v.bad || v.code == "" {
		if slices.Contains(t.ended, simEnd{v.n, v.bad}) || slices.Contains(t.items, simEnd{v.n, v.bad}) {
			return ""
		}
	}
	if !v.bad {
		return fmt.Sprintf("no run of it gave %d", v.n)
	}
	deps := t.deps
	if t.actor != nil {
		if deps = append(slices.Clone(deps), t.actor.deps...); slices.Contains(t.actor.ended, simEnd{v.n, v.bad}) {
			return "" // its constructor did
		}
	}
	for _, d := range deps { // an argument that is an error is what comes of it
		if deep < 50 && l.tasks[d.Task()] != nil && l.doubt(d, v, deep+1) == "" {
			return ""
		}
	}
	switch a := t.actor; v.code {
	case "cancelled":
		if t.cancel || l.orphaned {
			return ""
		}
		return "nobody cancelled it"
	case "actor_died":
		if a != nil && (a.over != "" || a.kind.restarts >= 0 && a.downs+l.silences > a.kind.restarts) {
			return ""
		}
		return "the actor is not dead"
	case "actor_unavailable":
		if a != nil && t.retries >= 0 && a.downs+l.silences-t.downs+t.asked > int(t.retries) {
			return ""
		}
		return "it did not die so often since"
	case "owner_died", "lost", "reconstruction":
		if l.lostNode || t.lost > 0 && v.code == "reconstruction" {
			return ""
		}
	}
	return "that is not an error that it may have"
}
