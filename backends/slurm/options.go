package slurm

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"launcher/backends"
	"launcher/configs"
)

// request is what a pool asks Slurm for.
type request struct {
	Partition, Account, QOS, Constraint, Reservation, Gres string

	Time, TimeMin time.Duration // 0 = the partition's own limit; TimeMin only with a range
	PerJob        int           // nodes of one job at most; 0 = by demand
	CPUs          int           // of each node; 0 = not asked
	Memory        int64         // of each node, bytes; 0 = not asked
	GPUs          int           // of each node; 0 = not asked
	Exclusive     bool
	Apart         bool     // nodes do not see the state directory
	Overlap       bool     // the job in another's place may run beside it
	Args          []string // more options of sbatch, verbatim
}

// reader takes a pool's keys and collects what is wrong with them.
type reader struct {
	o      backends.Options
	faults []backends.Fault
	known  []string
}

func (r *reader) fault(key, format string, args ...any) {
	r.faults = append(r.faults, backends.Fault{Key: key, Msg: fmt.Sprintf(format, args...)})
}

func (r *reader) get(key string) (any, bool) {
	r.known = append(r.known, key)
	v, ok := r.o[key]
	return v, ok
}

// str reads a value that becomes one word of the script.
func (r *reader) str(key string) string {
	v, ok := r.get(key)
	if !ok {
		return ""
	}
	s, ok := v.(string)
	if !ok || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == '"' || c == '\'' || c == '\\' || c == '#' }) {
		r.fault(key, "%v cannot stand here; give one word in quotes", v)
		return ""
	}
	return s
}

func (r *reader) number(key string) int {
	v, ok := r.get(key)
	if !ok {
		return 0
	}
	n := int64(-1)
	switch v := v.(type) {
	case int64:
		n = v
	case int:
		n = int64(v)
	case uint64:
		n = int64(min(v, 1<<40))
	}
	if n < 0 || n > 100_000 {
		r.fault(key, "%v is out of bounds; give 0 to 100000", v)
		return 0
	}
	return int(n)
}

func (r *reader) boolean(key string) bool {
	v, ok := r.get(key)
	if !ok {
		return false
	}
	b, ok := v.(bool)
	if !ok {
		r.fault(key, "%v is neither true nor false", v)
	}
	return b
}

func (r *reader) strings(key string) (out []string) {
	v, ok := r.get(key)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	for _, e := range list {
		s, isString := e.(string)
		ok = ok && isString
		out = append(out, s)
	}
	if !ok {
		r.fault(key, "%v is no list of strings", v)
	}
	return out
}

func (r *reader) duration(key string, v any) time.Duration {
	s, _ := v.(string)
	d, err := configs.ParseDuration(s)
	if err != nil || d < time.Minute {
		r.fault(key, `%v is no time; give at least a minute, such as "4h"`, v)
		return 0
	}
	return d
}

// times reads `time`: one, or the least and the most.
func (r *reader) times() (least, most time.Duration) {
	v, ok := r.get("time")
	if !ok {
		return 0, 0
	}
	list, ok := v.([]any)
	switch {
	case !ok:
		return 0, r.duration("time", v)
	case len(list) != 2:
		r.fault("time", `%v has not two times; give the least and the most, such as ["1h", "8h"]`, v)
		return 0, 0
	}
	return r.duration("time", list[0]), r.duration("time", list[1])
}

// parse reads a pool's own keys; every fault at once.
func parse(o backends.Options) (q request, faults []backends.Fault) {
	r := &reader{o: o}
	q = request{Partition: r.str("partition"), Account: r.str("account"), QOS: r.str("qos"), Constraint: r.str("constraint"),
		Reservation: r.str("reservation"), Gres: r.str("gres"), PerJob: r.number("nodes_per_job"), CPUs: r.number("cpus"),
		GPUs: r.number("gpus_per_node"), Exclusive: r.boolean("exclusive"), Args: r.strings("args")}
	q.TimeMin, q.Time = r.times()
	if v, ok := r.get("memory"); ok {
		s, _ := v.(string)
		n, err := configs.ParseSize(s)
		if err != nil || n < 1<<20 {
			r.fault("memory", `%v is no size; give one such as "64GiB"`, v)
		}
		q.Memory = n
	}
	q.Overlap = r.boolean("overlap")
	if _, ok := o["shared_home"]; ok {
		q.Apart = !r.boolean("shared_home")
	}
	r.known = append(r.known, "shared_home")
	for _, a := range q.Args {
		if !strings.HasPrefix(a, "-") || strings.ContainsAny(a, "\n\r") {
			r.fault("args", `%q is not one option; give each as sbatch takes it, such as "--mail-type=END"`, a)
		}
	}
	for k := range o {
		if !slices.Contains(r.known, k) {
			r.fault(k, "not a key of a slurm pool; its own keys are %s", strings.Join(r.known, ", "))
		}
	}
	return q, r.faults
}
