// Package supervisor keeps a node's processes and what must outlive its agent.
//
//	guard ── supervisor ── agent
//	              └── user processes
//
// The guard (GuardMain, command `node`) reads the node's configuration, starts the
// supervisor and waits; whenever the supervisor is gone, for whatever reason, it kills
// everything below itself and ends. The supervisor (Main, command `supervise`) starts
// the agent again whenever it dies, is the parent of all user processes, starts and
// reaps them on the agent's order, and holds the descriptors that must survive the agent
// (state memory, group memory, pipes, listeners). The agent talks to it through a Client.
//
// HeadMain (command `head-supervise`) is the same for the head, without processes.
//
// There is no network here, and nothing is read but the agent's messages and /proc.
package supervisor

import "time"

// Exit statuses by which an agent or head tells its supervisor not to start it again.
// Every other end, by any signal or status, is a crash and is restarted.
const (
	ExitDone  = 0  // all work is over; the node ends
	ExitFatal = 78 // starting again cannot help (refused, fenced, of another version)
)

const (
	// stopGrace is how long an agent that got SIGTERM may take to end everything.
	stopGrace = 20 * time.Second
	// guardGrace is how long the supervisor may take over that.
	guardGrace = stopGrace + 4*time.Second
	// steady is how long an agent must live for its next death to count as the first.
	steady = 5 * time.Second
	// defaultGrace bounds a series of deaths, none of which was preceded by a steady life.
	defaultGrace = 10 * time.Minute
	// killBound is how long we go on killing what does not die.
	killBound = 30 * time.Second
)

// markVar is the environment variable that names the guard of a process: unique on the
// machine, so that what escaped the tree can be found in /proc/PID/environ.
const markVar = "LAUNCHER_GUARD"
