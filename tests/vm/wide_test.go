package vm

import (
	"fmt"
	"strings"
	"testing"
)

// TestListWide: the state and image of each machine, also of many.
func TestListWide(t *testing.T) {
	Suites(t, func(t *testing.T, m *Machine) {
		m.signedImages()
		var many, want strings.Builder
		for i := range 12 {
			fmt.Fprintf(&many, "nspawnd-run -d --name m%02d %s trap > /dev/null & ", i, tiny)
			fmt.Fprintf(&want, "m%02d\n", i)
		}
		m.expect(t,
			outcome{many.String() + "wait; for i in 00 11; do said m$i ready; done; machinectl-lite pause m01; machinectl-lite list -o wide --json=off --no-legend | sed 's/  */ /g' | cut -d' ' -f1,2,3,7,8 | head -2", 0,
				"m00 container nspawnd running " + tiny + ":latest\nm01 container nspawnd paused " + tiny + ":latest\n", ""},
			outcome{"machinectl-lite -o wide --json=short | jq -r '.[11] | .machine, .state, .image'", 0, "m11\nrunning\n" + tiny + ":latest\n", ""},
			outcome{"machinectl-lite stats --no-stream --json=short | jq -r .[].machine", 0, want.String(), ""},
			outcome{"machinectl-lite stats --no-stream --json=short m05 m03 nosuch", 1, "/\"m05\".*\"m03\"/", "machinectl-lite: could not get what machine uses: No machine 'nosuch' known\n"},
			outcome{"machinectl-lite status -o wide m00", 1, "", "machinectl-lite: status: --output=wide is for list\n"},
			outcome{"machinectl-lite resume m01; machinectl-lite stop m* 2> /dev/null; machinectl-lite stop " + strings.Join(strings.Fields(want.String()), " "), 0, "", ""},
			// One that is not the whole unit (systemd 258): the supervisor beside it counts nothing.
			outcome{`systemd-run -q --unit=appc -p Delegate=yes systemd-nspawn -q --directory=/ --volatile=yes --machine=appc --keep-unit sh -c 'while :; do sleep 0.1; done'
				await sh -c 'machinectl-lite list --no-legend | grep -q appc'; machinectl-lite stats --no-stream --json=short appc | jq -r '.[].machine'
				machinectl-lite list -o wide --no-legend --max-addresses=0 | sed 's/  */ /g' | cut -d' ' -f1,6,7; systemctl stop appc`, 0, "appc\nappc running -\n", ""},
		)
		m.nothingLeft(t)
	})
}
