// Package thread runs what changes the thread that runs it: its namespaces, its user.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs f on a thread that ends with it. That can't be the process's first thread, which stays as long as the process and is what
// /proc/self shows.
func Run(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and not unlocked: the thread must not run anything else
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			Run(f) // while this one is taken
			return
		}
		f()
	}()
	<-done
}
