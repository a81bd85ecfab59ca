//go:build !linux

package testkit

// Process is a process of the Home. Clusters run on Linux only.
type Process struct {
	PID, PPID int
	Args, Env []string
}

func (p Process) Kind() string         { return "" }
func (h *Home) Processes() []Process   { return nil }
func (h *Home) PIDs(kind string) []int { return nil }
func (h *Home) Leaks() []string        { return nil }
func (h *Home) killAll()               {}
