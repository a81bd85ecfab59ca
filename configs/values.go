package configs

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// ParseSize reads "20GiB": a number and one of B, KB, MB, GB, TB, PB (powers of 1000) or
// KiB, MiB, GiB, TiB, PiB (powers of 1024, also written K, M, G, T, P).
func ParseSize(s string) (int64, error) {
	bad := func(why string) (int64, error) {
		return 0, errs.New(errs.Invalid, `%q is not a size%s; give a number and a unit, such as "20GiB" or "500MB"`, s, why)
	}
	t := strings.TrimSpace(s)
	i := 0
	for i < len(t) && (t[i] >= '0' && t[i] <= '9' || t[i] == '.') {
		i++
	}
	num, err := strconv.ParseFloat(t[:i], 64)
	if err != nil || i == 0 {
		return bad("")
	}
	unit := strings.ToLower(strings.TrimSpace(t[i:]))
	mult := 1.0
	switch {
	case unit == "b":
	case unit == "":
		if num != 0 {
			return bad(", it has no unit")
		}
	default:
		exp := strings.IndexByte("kmgtp", unit[0]) + 1
		switch {
		case exp == 0:
			return bad("")
		case unit[1:] == "" || unit[1:] == "ib":
			mult = math.Pow(1024, float64(exp))
		case unit[1:] == "b":
			mult = math.Pow(1000, float64(exp))
		default:
			return bad("")
		}
	}
	if v := num * mult; v < 1<<62 {
		return int64(v), nil
	}
	return bad(", it is too large")
}

var percentRE = regexp.MustCompile(`^([0-9]{1,3}(\.[0-9]+)?)%$`)

// CheckMemory accepts what [objects] memory may be: a size, or a percentage above 0 and
// up to 100 of the node's memory.
func CheckMemory(s string) error {
	if m := percentRE.FindStringSubmatch(s); m != nil {
		if p, _ := strconv.ParseFloat(m[1], 64); p <= 0 || p > 100 {
			return errs.New(errs.Invalid, `%q is out of bounds; give more than 0%% and at most 100%%`, s)
		}
		return nil
	}
	v, err := ParseSize(s)
	if err != nil {
		return errs.New(errs.Invalid, `%q is neither a share of memory nor a size; give "30%%" or "20GiB"`, s)
	}
	if v < 1<<20 {
		return errs.New(errs.Invalid, `%q is too little; give at least "1MiB"`, s)
	}
	return nil
}

var dayRE = regexp.MustCompile(`^([0-9]{1,5})d(.*)$`)

// ParseDuration reads "10m", "1h30m", "90s", "2d", "1d12h".
func ParseDuration(s string) (time.Duration, error) {
	t, days := strings.TrimSpace(s), time.Duration(0)
	if m := dayRE.FindStringSubmatch(t); m != nil {
		n, _ := strconv.Atoi(m[1])
		days, t = time.Duration(n)*24*time.Hour, m[2]
		if t == "" {
			return days, nil
		}
	}
	d, err := time.ParseDuration(t)
	if err != nil || d < 0 || strings.HasPrefix(t, "+") {
		return 0, errs.New(errs.Invalid, `%q is not a duration; give numbers with units, such as "90s", "10m", "1h30m" or "2d"`, s)
	}
	return days + d, nil
}

func showDuration(d time.Duration) string {
	s := d.String()
	s = strings.TrimSuffix(s, "0s")
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	if s == "" {
		return "0s"
	}
	return s
}

// maxIndex bounds the elements of an array job.
const maxIndex = 100_000_000

// ParseRanges reads "0-99" or "0-9,20,30-39" (both ends included) into sorted, disjoint
// ranges.
func ParseRanges(s string) ([]wire.Range, error) {
	bad := func(format string, args ...any) ([]wire.Range, error) {
		return nil, errs.New(errs.Invalid, `%q is not a range: %s; give "0-99" or "0-9,20,30-39"`, s, fmt.Sprintf(format, args...))
	}
	var out []wire.Range
	for _, part := range strings.Split(s, ",") {
		a, b, dash := strings.Cut(strings.TrimSpace(part), "-")
		if !dash {
			b = a
		}
		from, err1 := strconv.ParseUint(a, 10, 32)
		to, err2 := strconv.ParseUint(b, 10, 32)
		switch {
		case err1 != nil || err2 != nil:
			return bad("%q is not a number or two with a dash", part)
		case to < from:
			return bad("%d is after %d", from, to)
		case to >= maxIndex:
			return bad("the largest index is %d", maxIndex-1)
		}
		out = append(out, wire.Range{From: uint32(from), To: uint32(to) + 1})
	}
	slices.SortFunc(out, func(a, b wire.Range) int { return int(a.From) - int(b.From) })
	merged := out[:1]
	for _, r := range out[1:] {
		last := &merged[len(merged)-1]
		switch {
		case r.From < last.To:
			return bad("%d is in it twice", r.From)
		case r.From == last.To:
			last.To = r.To
		default:
			merged = append(merged, r)
		}
	}
	return merged, nil
}

// ParsePorts reads "20000-20100" or "20000"; "" means any.
func ParsePorts(s string) (lo, hi int, err error) {
	if s == "" {
		return 0, 0, nil
	}
	a, b, dash := strings.Cut(s, "-")
	if !dash {
		b = a
	}
	lo, err1 := strconv.Atoi(strings.TrimSpace(a))
	hi, err2 := strconv.Atoi(strings.TrimSpace(b))
	if err1 != nil || err2 != nil || lo < 1 || hi > 65535 || lo > hi {
		return 0, 0, errs.New(errs.Invalid, `%q is not a range of ports; give two numbers from 1 to 65535, the lower first, such as "20000-20100"`, s)
	}
	return lo, hi, nil
}

// Amount turns cores or GPUs as users write them (0.5) into wire.Unit-ths.
func Amount(v float64) (int64, error) {
	u := v * wire.Unit
	if !(v >= 0 && v <= 1e9) {
		return 0, errs.New(errs.Invalid, "%v is out of bounds; give from 0 to 1000000000", v)
	}
	if r := math.Round(u); math.Abs(u-r) < 1e-6*max(1, u) {
		return int64(r), nil
	}
	return 0, errs.New(errs.Invalid, "%v is too fine; the smallest step is 0.0001", v)
}

var (
	nameRE     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	poolRE     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,30}[A-Za-z0-9])?$`)
	envRE      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	resourceRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,62}$`)
)

// CheckName accepts what a cluster may be called: its name becomes a directory.
func CheckName(s string) error {
	if !nameRE.MatchString(s) {
		return errs.New(errs.Invalid, "%q cannot be a name; give 1 to 63 letters, digits, '.', '_' or '-', first and last a letter or digit", s)
	}
	return nil
}

// resources reads { cpu = 1, gpu = 0.5, memory = "2GiB", license = 2 }. The keys in extra
// are read by the caller.
func (t *table) resources(def wire.Resources, extra ...string) wire.Resources {
	r := def
	builtin := append([]string{"cpu", "gpu", "memory"}, extra...)
	for _, k := range builtin {
		t.get(k)
	}
	amount := func(key string, to *int64) {
		if n := t.obj.m[key]; n != nil {
			v, ok := toFloat(n.val)
			if !ok {
				t.want(key, n, "a number")
			} else if u, err := Amount(v); err != nil {
				t.fault(key, "%s", err)
			} else {
				*to = u
			}
		}
	}
	amount("cpu", &r.CPU)
	amount("gpu", &r.GPU)
	r.Memory = t.size("memory", r.Memory)
	for _, k := range t.obj.keys {
		if slices.Contains(t.known, k) {
			continue
		}
		if near := slices.IndexFunc(builtin, func(b string) bool { return distance(k, b) <= 1 }); near >= 0 {
			continue // a slip of the pen, which done reports
		}
		t.get(k)
		if _, isNumber := toFloat(t.obj.m[k].val); !isNumber || !resourceRE.MatchString(k) {
			t.fault(k, "unknown key; a resource of your own is a name and a number, such as license = 2; the others are %s", strings.Join(builtin, ", "))
			continue
		}
		var u int64
		amount(k, &u)
		if r.Custom == nil {
			r.Custom = map[string]int64{}
		}
		r.Custom[k] = u
	}
	return r
}

// ParseLimits reads limits of a job as the command line has them: "cpu=8", "memory=64GiB",
// "license=2", also several with commas between them.
func ParseLimits(given []string) (wire.Limits, error) {
	var l wire.Limits
	for _, s := range strings.Split(strings.Join(given, ","), ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		name, amount, ok := strings.Cut(s, "=")
		if !ok || !resourceRE.MatchString(name) {
			return nil, errs.New(errs.Invalid, "%q is no limit; give such as cpu=8, gpu=1, memory=64GiB, or license=2 for a resource of your own", s)
		}
		var v int64
		f, err := strconv.ParseFloat(amount, 64)
		switch {
		case name == "memory":
			v, err = ParseSize(amount)
		case err == nil:
			v, err = Amount(f)
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "%q is no amount for a limit of %s", amount, name)
		}
		if l == nil {
			l = wire.Limits{}
		}
		l[name] = v
	}
	return l, nil
}
