package launcher

import (
	"maps"
	"slices"
)

// actorOptions are those that only actors have.
type actorOptions struct {
	name, namespace     string
	orExisting          bool
	detached, unordered bool
	restarts            *int
	concurrency         int
	pending             int
	groups              map[string]int
	meta                []byte
}

// forActor gives those options a place that is not shared with other calls.
func (o *options) forActor() *actorOptions {
	a := actorOptions{}
	if o.actor != nil {
		a = *o.actor
	}
	o.actor = &a
	return o.actor
}

// ActorName names an actor, for FindActor. No two actors of a namespace have the same.
func ActorName(name string) Option { return func(o *options) { o.forActor().name = name } }

// Namespace is where the actor's name counts; without it, in this job.
func Namespace(space string) Option { return func(o *options) { o.forActor().namespace = space } }

// GetIfExists has New give a handle of the actor that has the name already, if there is one.
func GetIfExists() Option { return func(o *options) { o.forActor().orExisting = true } }

// Detached lets the actor live on without handles, and after its program, until it is
// killed.
func Detached() Option { return func(o *options) { o.forActor().detached = true } }

// MaxRestarts is how often the actor begins anew, with the same arguments, when its process
// or node dies; 0 without it, -1 for ever.
func MaxRestarts(n int) Option {
	return func(o *options) {
		if n < -1 {
			o.fail("an actor with %d restarts", n)
		}
		o.forActor().restarts = &n
	}
}

// MaxConcurrency is how many calls the actor runs at a time, each in a goroutine of its own;
// 1 without it.
func MaxConcurrency(n int) Option {
	return func(o *options) {
		if n < 1 {
			o.fail("an actor with %d calls at a time", n)
		}
		o.forActor().concurrency = n
	}
}

// MaxPendingCalls is how many calls that were submitted with the Handle that New gives, and
// copies of it in this process, may be open at a time: the Ref of one more fails at once,
// with ErrPendingCalls. Without it there may be any number. Calls of StreamMethods do not
// count.
func MaxPendingCalls(n int) Option {
	return func(o *options) {
		if n < 1 {
			o.fail("an actor with %d open calls", n)
		}
		o.forActor().pending = n
	}
}

// ConcurrencyGroup lets n calls of methods that are InGroup(name) run at a time, whatever
// others do.
func ConcurrencyGroup(name string, n int) Option {
	return func(o *options) {
		if n < 1 || name == "" {
			o.fail("a concurrency group %q of %d calls at a time", name, n)
		}
		a := o.forActor()
		a.groups = maps.Clone(a.groups)
		if a.groups == nil {
			a.groups = map[string]int{}
		}
		a.groups[name] = n
	}
}

// Unordered lets calls overtake others that wait for their arguments.
func Unordered() Option { return func(o *options) { o.forActor().unordered = true } }

// InGroup is the concurrency group that the calls of a method run in.
func InGroup(name string) Option { return func(o *options) { o.group = name } }

// check refuses options that are not for what f is.
func (o *options) check(f *function) {
	method := o.method != ""
	switch class := f.of != nil && !method; {
	case class && o.retries != nil:
		o.fail("Retries for an actor: it is for tasks and methods, MaxRestarts for actors")
	case class && o.group != "":
		o.fail("InGroup(%q) for an actor: it is for methods, ConcurrencyGroup for actors", o.group)
	case class && o.actor != nil:
		o.retries = o.actor.restarts
		if o.actor.name == "" && o.actor.orExisting {
			o.fail("GetIfExists for an actor without a name")
		}
	case o.actor != nil:
		o.fail("an option of actors for %s, which is none", f.name)
	case !method && o.group != "":
		o.fail("InGroup(%q) for %s, which is no method", o.group, f.name)
	}
}

// encode appends the map of docs/actors.md, section 2.
func (a *actorOptions) encode(b []byte) []byte {
	var body []byte
	n := 0
	key := func(k string) { body = appendString(body, k); n++ }
	if a.concurrency > 1 {
		key("concurrency")
		body = appendInt(body, int64(a.concurrency))
	}
	if len(a.groups) > 0 {
		key("groups")
		body = appendMap(body, len(a.groups))
		for _, name := range slices.Sorted(maps.Keys(a.groups)) {
			body = appendInt(appendString(body, name), int64(a.groups[name]))
		}
	}
	if a.unordered {
		key("unordered")
		body = appendBool(body, true)
	}
	if a.detached {
		key("detached")
		body = appendBool(body, true)
	}
	if a.name != "" {
		key("namespace")
		body = appendString(body, a.namespace)
		key("name")
		body = appendString(body, a.name)
	}
	key("meta")
	body = appendBin(body, a.meta)
	return append(appendMap(b, n), body...)
}
