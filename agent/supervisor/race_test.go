//go:build race

package supervisor_test

import "time"

// goneBound is what "at once" may take; the race detector slows everything, and so does a busy machine.
const goneBound = 20 * time.Second
