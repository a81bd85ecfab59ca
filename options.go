package launcher

import (
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"launcher/internal/errs"
)

// Option says what a task needs and how it is treated. Options go to Submit or, for all
// calls, to With.
type Option func(*options)

// options are those of one task; the zero value is all defaults.
type options struct {
	name, program, language string
	cpu, gpu                *float64
	memory                  int64
	resources               map[string]float64
	retries                 *int
	priority                int
	strategy                string // "", spread, node, labels
	node                    string
	soft                    bool
	hard, prefer            map[string]labelRule
	env                     map[string]string
	workdir                 string
	backpressure            int
	time                    time.Duration
	method, group           string // of a call of an actor
	plain                   bool   // called from another program
	actor                   *actorOptions
	err                     error
}

type labelRule struct {
	op     string
	values []string
}

func (o *options) fail(format string, args ...any) {
	if o.err == nil {
		o.err = errs.New(errs.Invalid, format, args...)
	}
}

// amount checks a number of resources: 0 or more, and not too fine.
func (o *options) amount(what string, n float64) float64 {
	if !(n >= 0 && n <= 1e9) {
		o.fail("a task with %s %v", what, n)
		return 0
	}
	return n
}

// CPU is how many cores the task uses; 1 without it, 0 for tasks that mostly wait.
func CPU(n float64) Option { return func(o *options) { n := o.amount("CPU", n); o.cpu = &n } }

// GPU is how many GPUs the task uses; a fraction shares one.
func GPU(n float64) Option { return func(o *options) { n := o.amount("GPU", n); o.gpu = &n } }

// Memory is how many bytes of memory the task uses.
func Memory(bytes int64) Option {
	return func(o *options) {
		if bytes < 0 {
			o.fail("a task with %d bytes of memory", bytes)
		}
		o.memory = bytes
	}
}

// Resource asks for an amount of a resource that pools define.
func Resource(name string, n float64) Option {
	return func(o *options) {
		o.resources = maps.Clone(o.resources)
		if o.resources == nil {
			o.resources = map[string]float64{}
		}
		o.resources[name] = o.amount(name, n)
	}
}

// Retries is how often a task whose worker or node is lost, or that returns Retry, is
// run again; 3 without it, -1 for ever.
func Retries(n int) Option {
	return func(o *options) {
		if n < -1 {
			o.fail("a task with %d retries", n)
		}
		o.retries = &n
	}
}

// Name is what the task is called in tables and messages; the function's without it.
func Name(name string) Option { return func(o *options) { o.name = name } }

// Spread places tasks evenly over the nodes instead of filling one after the other.
func Spread() Option { return func(o *options) { o.strategy = "spread" } }

// OnNode places the task on a node, by id.
func OnNode(id string) Option {
	return func(o *options) { o.strategy, o.node, o.soft = "node", id, false }
}

// PreferNode places the task on a node while that is up and has room for such tasks.
func PreferNode(id string) Option {
	return func(o *options) { o.strategy, o.node, o.soft = "node", id, true }
}

// Label places the task on nodes whose label has one of the values; without values, on
// nodes that have the label.
func Label(key string, values ...string) Option {
	return func(o *options) { o.hard = o.label(o.hard, key, "in", values) }
}

// NotLabel keeps the task from nodes whose label has one of the values; without values,
// from nodes that have the label.
func NotLabel(key string, values ...string) Option {
	return func(o *options) { o.hard = o.label(o.hard, key, "!in", values) }
}

// PreferLabel is Label where such nodes have room, else no condition.
func PreferLabel(key string, values ...string) Option {
	return func(o *options) { o.prefer = o.label(o.prefer, key, "in", values) }
}

func (o *options) label(m map[string]labelRule, key, op string, values []string) map[string]labelRule {
	o.strategy = "labels"
	if len(values) == 0 {
		op = map[string]string{"in": "exists", "!in": "!exists"}[op]
	}
	m = maps.Clone(m)
	if m == nil {
		m = map[string]labelRule{}
	}
	m[key] = labelRule{op, values}
	return m
}

// Priority orders waiting tasks: higher first, 0 without it.
func Priority(n int) Option { return func(o *options) { o.priority = n } }

// Time is how long the task is assumed to take: short ones may run in room that is held
// free for later.
func Time(d time.Duration) Option { return func(o *options) { o.time = d } }

// Env is the environment of the task's worker, besides what every process gets.
func Env(vars map[string]string) Option { return func(o *options) { o.env = maps.Clone(vars) } }

// WorkingDir is the directory of the task's worker; a relative one is seen from this
// program's. A node that does not see it is brought what is in it, at most 500 MB, but for
// what its .gitignore and .launcherignore files leave out.
func WorkingDir(dir string) Option {
	return func(o *options) {
		if abs, err := filepath.Abs(dir); err == nil && dir != "" {
			dir = abs
		}
		o.workdir = dir
	}
}

// Backpressure is how many items of a stream may wait to be taken before the function
// is held up.
func Backpressure(items int) Option {
	return func(o *options) {
		if items < 0 {
			o.fail("a stream with %d items of back-pressure", items)
		}
		o.backpressure = items
	}
}

// Program is the binary, or the interpreter, that has the function: for functions of
// another program, called by name.
func Program(path string) Option { return func(o *options) { o.program = path } }

const unit = 10000 // resources are counted in ten-thousandths

func units(n float64) int64 { return int64(math.Round(n * unit)) }

// encode gives the msgpack map of docs/tasks.md, section 5, the same for equal options.
func (o *options) encode() []byte {
	var body []byte
	n := 0
	key := func(k string) { body = appendString(body, k); n++ }
	str := func(k, v string) {
		if v != "" {
			key(k)
			body = appendString(body, v)
		}
	}
	num := func(k string, v int64, set bool) {
		if set {
			key(k)
			body = appendInt(body, v)
		}
	}
	str("name", o.name)
	str("method", o.method)
	str("group", o.group)
	if o.plain {
		key("plain")
		body = appendBool(body, true)
	}
	str("language", o.language)
	str("program", o.program)
	if o.cpu != nil {
		num("cpu", units(*o.cpu), true)
	}
	if o.gpu != nil {
		num("gpu", units(*o.gpu), true)
	}
	num("memory", o.memory, o.memory > 0)
	if len(o.resources) > 0 {
		key("resources")
		body = appendMap(body, len(o.resources))
		for _, name := range slices.Sorted(maps.Keys(o.resources)) {
			body = appendInt(appendString(body, name), units(o.resources[name]))
		}
	}
	if o.retries != nil {
		num("max_retries", int64(*o.retries), true)
	}
	num("priority", int64(o.priority), o.priority != 0)
	switch o.strategy {
	case "spread":
		key("strategy")
		body = appendString(appendArray(body, 1), "spread")
	case "node":
		key("strategy")
		body = appendString(appendString(appendArray(body, 3), "node"), o.node)
		body = appendBool(body, o.soft)
	case "labels":
		key("strategy")
		body = appendString(appendArray(body, 3), "labels")
		body = appendRules(appendRules(body, o.hard), o.prefer)
	}
	if env := o.environment(); len(env) > 0 {
		key("env")
		body = appendMap(body, len(env))
		for _, name := range slices.Sorted(maps.Keys(env)) {
			body = appendString(appendString(body, name), env[name])
		}
	}
	str("working_dir", o.workdir)
	num("backpressure", int64(o.backpressure), o.backpressure > 0)
	num("time", int64(o.time), o.time > 0)
	if o.actor != nil {
		key("actor")
		body = o.actor.encode(body)
	}
	return append(appendMap(nil, n), body...)
}

// environment is env; Python also looks for modules where this program runs.
func (o *options) environment() map[string]string {
	if o.language != "python" || o.env["PYTHONPATH"] != "" {
		return o.env
	}
	dir, err := os.Getwd()
	if err != nil {
		return o.env
	}
	env := map[string]string{"PYTHONPATH": dir}
	maps.Copy(env, o.env)
	return env
}

func appendRules(b []byte, rules map[string]labelRule) []byte {
	b = appendMap(b, len(rules))
	for _, k := range slices.Sorted(maps.Keys(rules)) {
		r := rules[k]
		b = appendString(appendArray(appendString(b, k), 2), r.op)
		b = appendArray(b, len(r.values))
		for _, v := range r.values {
			b = appendString(b, v)
		}
	}
	return b
}
