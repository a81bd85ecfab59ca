package configs

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	"launcher/wire"
)

// DefaultSweepCommand is W&B's: what a sweep with a program and no command runs.
var DefaultSweepCommand = []string{"${env}", "${interpreter}", "${program}", "${args}"}

// sweepMacros are the macros of a W&B command; ${envvar:NAME} comes on top.
var sweepMacros = []string{"env", "interpreter", "program", "args", "args_no_boolean_flags",
	"args_no_hyphens", "args_json", "args_json_file"}

// readSweep reads [sweep] or the top of a W&B file, and leaves t.done to the caller.
func readSweep(t *table) *wire.SweepSpec {
	s := &wire.SweepSpec{}
	s.Method = t.oneOf("method", "", "grid", "random", "qmc", "tpe", "cmaes", "pbt", "bayes")
	if !t.has("method") {
		t.fault("method", "missing; give grid or random")
	}
	metric := t.table("metric")
	s.Metric = metric.str("name", "")
	if metric.present && !metric.bad["name"] && !t.bad["metric"] && s.Metric == "" {
		metric.fault("name", `missing; give the name that the program reports, such as "loss"`)
	}
	s.Maximize = metric.oneOf("goal", "minimize", "minimize", "maximize") == "maximize"
	if metric.has("target") {
		v := metric.number("target", 0, -math.MaxFloat64, math.MaxFloat64)
		s.Target = &v
	}
	metric.done()
	s.RunCap = int(t.integer("run_cap", 0, 1, 10_000_000))
	s.Concurrent = int(t.integer("concurrent", 0, 1, 1_000_000))
	s.Seed = uint64(t.integer("seed", 0, 0, math.MaxInt64))
	s.Program = t.str("program", "")
	s.Command = t.strings("command", 1)
	s.Early = readEarly(t.table("early_terminate"))
	if s.Early != nil && s.Metric == "" && !metric.present {
		t.fault("metric", `missing; early_terminate compares trials by it, such as { name = "loss", goal = "minimize" }`)
	}

	params := t.table("parameters")
	if !t.has("parameters") {
		t.fault("parameters", "missing; give at least one")
	} else if len(params.obj.keys) == 0 && !t.bad["parameters"] {
		t.fault("parameters", "it is empty; give at least one")
	}
	s.Parameters = readParameters(params, "", 0)
	if s.Method == "grid" {
		checkGrid(t, params, s)
	} else if s.RunCap == 0 && !t.bad["run_cap"] && !t.bad["method"] && t.has("method") {
		t.fault("run_cap", "missing; method %q goes on for ever, say after how many trials it ends", s.Method)
	}
	return s
}

func readEarly(t *table) *wire.EarlySpec {
	if !t.present {
		return nil
	}
	e := &wire.EarlySpec{}
	e.Type = t.oneOf("type", "", "asha", "hyperband", "median")
	if !t.has("type") {
		t.fault("type", "missing; give asha")
	}
	e.MinIter = t.integer("min_iter", 1, 1, math.MaxInt32)
	e.MaxIter = t.integer("max_iter", 0, 1, math.MaxInt32)
	e.Eta = t.integer("eta", 3, 2, 1000)
	if e.Type == "hyperband" { // W&B's own: brackets from min_iter, or from max_iter and s
		t.integer("s", 0, 1, 64)
		t.boolean("strict", false)
	}
	switch {
	case t.bad["max_iter"] || t.bad["min_iter"]:
	case e.Type == "asha" && !t.has("max_iter"):
		t.fault("max_iter", "missing; give the steps of a whole trial")
	case t.has("max_iter") && e.MinIter > e.MaxIter:
		t.fault("min_iter", "%d is more than max_iter, %d; give at most that", e.MinIter, e.MaxIter)
	}
	t.done()
	return e
}

// distribution says which keys a kind of parameter takes, and which of them it needs.
type distribution struct {
	needs, takes []string
	positive     bool // min must be above 0
	integral     bool // min and max are integers
}

var (
	bounds     = []string{"min", "max"}
	quantised  = []string{"q"}
	location   = []string{"mu", "sigma"}
	quantisedN = []string{"mu", "sigma", "q"}
)

// distributions are W&B's. log_uniform is between exp(min) and exp(max); log_uniform_values
// between min and max; inv_log_* are 1/x of that. The q_ forms round to multiples of q.
var distributions = map[string]distribution{
	"constant":                    {needs: []string{"value"}},
	"categorical":                 {needs: []string{"values"}, takes: []string{"probabilities"}},
	"categorical_w_probabilities": {needs: []string{"values", "probabilities"}},
	"int_uniform":                 {needs: bounds, integral: true},
	"uniform":                     {needs: bounds},
	"q_uniform":                   {needs: bounds, takes: quantised},
	"log_uniform":                 {needs: bounds},
	"q_log_uniform":               {needs: bounds, takes: quantised},
	"inv_log_uniform":             {needs: bounds},
	"log_uniform_values":          {needs: bounds, positive: true},
	"q_log_uniform_values":        {needs: bounds, takes: quantised, positive: true},
	"inv_log_uniform_values":      {needs: bounds, positive: true},
	"normal":                      {takes: location},
	"q_normal":                    {takes: quantisedN},
	"log_normal":                  {takes: location},
	"q_log_normal":                {takes: quantisedN},
}

// readParameters reads parameters, nested ones with dotted names, in the order of the file.
func readParameters(t *table, prefix string, depth int) []wire.Parameter {
	var out []wire.Parameter
	for _, name := range t.obj.keys {
		n := t.get(name)
		if name == "" || strings.ContainsAny(name, " \t\n=\x00") {
			t.fault(name, "%q cannot be the name of a parameter; give one without spaces and =", name)
			continue
		}
		if _, ok := n.val.(*object); !ok {
			t.want(name, n, "a table, such as { min = 0, max = 1 }, { values = [1, 2] } or { value = 3 }")
			continue
		}
		p := t.table(name)
		if p.obj.m["parameters"] != nil {
			if depth > 16 {
				p.fault("parameters", "nested too deep")
				continue
			}
			out = append(out, readParameters(p.table("parameters"), prefix+name+".", depth+1)...)
			p.done()
			continue
		}
		out = append(out, readParameter(p, prefix+name))
	}
	seen := map[string]bool{}
	for _, p := range out {
		if depth == 0 && seen[p.Name] {
			t.fault(p.Name, "is given twice, once nested and once dotted")
		}
		seen[p.Name] = true
	}
	return out
}

func readParameter(t *table, name string) wire.Parameter {
	p := wire.Parameter{Name: name}
	p.Distribution = t.oneOf("distribution", "", slices.Collect(maps.Keys(distributions))...)
	if p.Distribution == "" && !t.bad["distribution"] {
		p.Distribution = guessDistribution(t)
	}
	d, ok := distributions[p.Distribution]
	if !ok {
		if !t.bad["distribution"] {
			t.faultAt(t.line, "", "it says nothing about its values; give value, values, min and max, or a distribution")
		}
		t.known = append(t.known, t.obj.keys...)
		return p
	}
	for _, k := range d.needs {
		if !t.has(k) {
			t.fault(k, "missing; distribution %q needs it", p.Distribution)
		}
	}
	allowed := append(slices.Clone(d.needs), d.takes...)
	for _, k := range []string{"value", "values", "probabilities", "min", "max", "mu", "sigma", "q"} {
		if t.obj.m[k] != nil && !slices.Contains(allowed, k) {
			t.get(k)
			t.fault(k, "distribution %q does not take it; it takes %s", p.Distribution, strings.Join(allowed, ", "))
		}
	}
	if n := t.get("value"); n != nil {
		p.Values = []any{n.plain()}
		plainValue(t, "value", n)
	}
	readValues(&p, t)
	p0 := func(key string, def float64) float64 { return t.number(key, def, -math.MaxFloat64, math.MaxFloat64) }
	p.Min, p.Max = p0("min", 0), p0("max", 0)
	if d.integral {
		for _, k := range bounds {
			if n := t.obj.m[k]; n != nil && !t.bad[k] {
				v, ok := n.val.(int64)
				switch {
				case !ok:
					t.want(k, n, "an integer")
				case v < -maxExact || v > maxExact:
					t.fault(k, "%d is out of bounds; give an integer%s", v, between(-maxExact, maxExact))
				}
			}
		}
	}
	if !t.bad["min"] && !t.bad["max"] && t.has("min") && t.has("max") {
		switch {
		case p.Min > p.Max:
			t.fault("min", "%v is more than max, %v; give at most max", t.obj.m["min"].val, t.obj.m["max"].val)
		case d.positive && p.Min <= 0:
			t.fault("min", "%v is out of bounds; distribution %q needs more than 0", t.obj.m["min"].val, p.Distribution)
		case strings.HasSuffix(p.Distribution, "log_uniform") && math.IsInf(math.Exp(max(p.Max, -p.Min)), 0):
			t.fault("max", "exp(%v) is too large; min and max of %q are exponents, for values use %s_values", p.Max, p.Distribution, p.Distribution)
		}
	}
	p.Mu = p0("mu", 0)
	if slices.Contains(d.takes, "sigma") {
		if p.Sigma = p0("sigma", 1); p.Sigma <= 0 && !t.bad["sigma"] {
			t.fault("sigma", "%v is out of bounds; give more than 0", p.Sigma)
		}
	}
	if slices.Contains(d.takes, "q") {
		if p.Q = p0("q", 1); p.Q <= 0 && !t.bad["q"] {
			t.fault("q", "%v is out of bounds; give a step above 0", p.Q)
		}
	}
	t.done()
	return p
}

// maxExact bounds whole numbers to what a float64, and so every JSON reader, holds.
const maxExact = 1 << 53

// plainValue reports what programs could not be handed as it is: parameters travel as JSON.
func plainValue(t *table, key string, n *node) {
	switch v := n.val.(type) {
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			t.faultAt(n.line, key, "%v is not a finite number; put it in quotes if it is meant as text", v)
		}
	case stamp:
		t.faultAt(n.line, key, "%s is a date or time without quotes; put it in quotes", v)
	case []*node:
		for _, e := range v {
			plainValue(t, key, e)
		}
	case *object:
		for _, k := range v.keys {
			plainValue(t, key, v.m[k])
		}
	}
}

func guessDistribution(t *table) string {
	lo, hi := t.obj.m["min"], t.obj.m["max"]
	switch {
	case t.obj.m["value"] != nil:
		return "constant"
	case t.obj.m["values"] != nil:
		return "categorical"
	case lo != nil && hi != nil:
		_, a := lo.val.(int64)
		_, b := hi.val.(int64)
		if a && b {
			return "int_uniform"
		}
		return "uniform"
	case lo != nil || hi != nil:
		return "uniform"
	case t.obj.m["mu"] != nil || t.obj.m["sigma"] != nil:
		return "normal"
	}
	return ""
}

func checkGrid(t, params *table, s *wire.SweepSpec) {
	total := 1.0
	for _, p := range s.Parameters {
		key := "parameters." + p.Name
		switch p.Distribution {
		case "":
		case "constant", "categorical", "int_uniform", "q_uniform":
			total *= float64(GridSize(p))
			if len(p.Probs) > 0 {
				t.faultAt(lineOf(params, p.Name), key, "method grid takes each value once; leave probabilities out")
			}
		default:
			t.faultAt(lineOf(params, p.Name), key, "method grid cannot count the values of distribution %q; give values, or method random", p.Distribution)
		}
	}
	if total > 10_000_000 && s.RunCap == 0 {
		t.fault("parameters", "the grid has %.3g points; give fewer values, or run_cap", total)
	}
}

func lineOf(t *table, dotted string) int {
	if n := t.obj.m[dotted]; n != nil {
		return n.line
	}
	for i, c := range dotted { // nested: as deep as it goes
		n := t.obj.m[dotted[:i]]
		if c != '.' || n == nil {
			continue
		}
		if o, ok := n.val.(*object); ok && o.m["parameters"] != nil {
			if inner, ok := o.m["parameters"].val.(*object); ok {
				return lineOf(&table{obj: inner, line: n.line}, dotted[i+1:])
			}
		}
		return n.line
	}
	return t.line
}

// GridSize is how many points a parameter has on a grid, at least 1.
func GridSize(p wire.Parameter) int64 {
	switch p.Distribution {
	case "constant", "categorical", "categorical_w_probabilities":
		return max(1, int64(len(p.Values)))
	case "int_uniform":
		return int64(min(math.Floor(p.Max)-math.Ceil(p.Min), 1e9)) + 1
	case "q_uniform":
		if p.Q > 0 {
			return int64(min(math.Floor((p.Max-p.Min)/p.Q+1e-9), 1e9)) + 1
		}
	}
	return 1
}

var macroRE = regexp.MustCompile(`\$\{([^}]*)\}`)

// checkMacros reports macros of a command that do not exist.
func checkMacros(t *table, key string, command []string, program string) {
	for _, arg := range command {
		for _, m := range macroRE.FindAllStringSubmatch(arg, -1) {
			name := m[1]
			if v, ok := strings.CutPrefix(name, "envvar:"); ok {
				if !envRE.MatchString(v) {
					t.fault(key, "${%s}: %q is not the name of a variable", name, v)
				}
				continue
			}
			switch {
			case !slices.Contains(sweepMacros, name):
				t.fault(key, "${%s} is no macro; %s (a variable of the shell is $NAME)", name, didYouMean(name, append(slices.Clone(sweepMacros), "envvar:NAME")))
			case name == "program" && program == "":
				t.fault(key, "${program} needs the key program, the script to run")
			}
		}
	}
}

// sweepCommand settles what the trials run: command at the top of a job file or in
// [sweep], else the program with its arguments.
func (j *Job) sweepCommand(top, t *table) {
	s := j.Sweep
	key, where := "command", t
	switch {
	case len(j.Command) > 0 && len(s.Command) > 0:
		t.fault("command", "the job file has a command too; give one of the two")
	case len(j.Command) > 0:
		s.Command, where = j.Command, top
	case len(s.Command) == 0 && s.Program == "" && !t.bad["program"] && !t.bad["command"] && !top.bad["command"]:
		t.fault("program", "missing; give the script to tune, or a command")
	case len(s.Command) == 0:
		s.Command = slices.Clone(DefaultSweepCommand)
	}
	checkMacros(where, key, s.Command, s.Program)
	j.Command = s.Command
	t.done()
}

// readValues reads values and probabilities.
func readValues(p *wire.Parameter, t *table) {
	n := t.get("values")
	if n != nil {
		list, ok := n.val.([]*node)
		switch {
		case !ok:
			t.want("values", n, "a list, such as [16, 32, 64]")
		case len(list) == 0:
			t.fault("values", "the list is empty; give at least one")
		}
		for _, e := range list {
			p.Values = append(p.Values, e.plain())
			plainValue(t, "values", e)
		}
	}
	q := t.get("probabilities")
	if q == nil {
		return
	}
	list, ok := q.val.([]*node)
	if !ok {
		t.want("probabilities", q, "a list of numbers, one for each of values")
		return
	}
	sum := 0.0
	for _, e := range list {
		v, ok := toFloat(e.val)
		if !ok || !(v >= 0 && v <= 1) {
			t.faultAt(e.line, "probabilities", "%s is not a probability; give a number from 0 to 1", e.show())
			return
		}
		sum += v
		p.Probs = append(p.Probs, v)
	}
	switch {
	case len(p.Probs) != len(p.Values) && !t.bad["values"]:
		t.fault("probabilities", "%d of them for %d values; give one for each", len(p.Probs), len(p.Values))
	case math.Abs(sum-1) > 1e-6:
		t.fault("probabilities", "they add up to %s, not to 1", fmt.Sprint(sum))
	}
}
