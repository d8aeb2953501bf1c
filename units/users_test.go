package units

import (
	"strings"
	"testing"
)

func TestUsers(t *testing.T) {
	for text, want := range map[string]IDRange{"0:1000:5": {0, 1000, 5}, "7:8": {7, 8, 1}, "0:1:4294967294": {0, 1, 4294967294}} {
		if r, err := ParseIDRange(text); err != nil || r != want {
			t.Errorf("%q is %v, %v", text, r, err)
		}
	}
	for _, text := range []string{"", "1", "1:2:3:4", "a:1:1", "-1:1:1", "0:1:0", "0:2:4294967294", "4294967296:1:1", "+1:2:3"} {
		if r, err := ParseIDRange(text); err == nil {
			t.Errorf("%q is %v", text, r)
		}
	}
	ranges, err := ParseSubIDs("root:1:2\n# me:4:5\nme:100000:10\nyou:5:5\n me:300000:20 \n", "me")
	if err != nil || len(ranges) != 2 || ranges[1] != (IDRange{10, 300000, 20}) {
		t.Errorf("%v, %v", ranges, err)
	}
	whole := []IDRange{{0, 100000, 10}, {10, 300000, 20}}
	for _, c := range []struct {
		users Users
		wrong string
	}{
		{Users{UIDs: whole, GIDs: whole}, ""},
		{Users{UIDs: whole}, "not mapped"},
		{Users{UIDs: whole, GIDs: whole[1:]}, "not mapped"},
		{Users{UIDs: []IDRange{{0, 100000, 10}, {9, 300000, 2}}, GIDs: whole}, "overlap"},
		{Users{UIDs: []IDRange{{0, 100000, 10}, {10, 100009, 2}}, GIDs: whole}, "overlap"},
		{Users{UIDs: make([]IDRange, 341), GIDs: whole}, "more than"},
	} {
		if err := c.users.Check(); (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%v: %v", c.users, err)
		}
	}
	m := Machine{Users: &Users{UIDs: whole, GIDs: whole}, Account: Account{UID: 11, GID: 0, Groups: []uint32{29}}}
	if a := m.HostAccount(); a.UID != 300001 || a.GID != 100000 || a.Groups[0] != 300019 {
		t.Errorf("%v", a)
	}
}
