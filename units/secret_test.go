package units

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseSecret(t *testing.T) {
	for s, want := range map[string]*Secret{
		"db":                                   {Name: "db", Target: "/run/secrets/db", Mode: 0o444},
		"source=db,target=pass,mode=0400":      {Name: "db", Target: "/run/secrets/pass", Mode: 0o400},
		"db,uid=5,gid=6,target=/run/secrets/x": {Name: "db", Target: "/run/secrets/x", UID: 5, GID: 6, Mode: 0o444},
		"db,type=env":                          {Name: "db", Variable: "db", Mode: 0o444},
		"db,type=env,target=PASS":              {Name: "db", Variable: "PASS", Mode: 0o444},
		"db,src=/srv/db":                       {Name: "db", Source: "/srv/db", Target: "/run/secrets/db", Mode: 0o444},
		"":                                     nil, "a/b": nil, "a:b": nil, "..": nil, "db,type=x": nil, "db,target=/etc/x": nil, "db,target=../x": nil, "db,target=a/b": nil, "db,mode=9": nil,
		"db,uid=-1": nil, "db,src=rel": nil, "db,color=red": nil, "db,type=env,target=A=B": nil, "target=x": nil, "ö": nil,
	} {
		got, err := ParseSecret(s)
		if (err == nil) != (want != nil) {
			t.Errorf("%q: %+v, %v", s, got, err)
		} else if want != nil {
			if diff := cmp.Diff(*want, got); diff != "" {
				t.Errorf("%q: %s", s, diff)
			}
		}
	}
}
