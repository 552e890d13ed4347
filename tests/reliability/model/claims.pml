/* One key: its record in a store, the spools of two machines, and attempts that open the key,
 * stage states, store them, leave, delete it, are paused for as long as may be, or are killed.
 *
 * docs/reliability.md maps each part to the code. test_model.py checks it to completion, as it is and
 * with one rule less (-DNO_CLAIM_CHECK and the like), which must break a guarantee.
 *
 * A state is its number; of two, the higher was staged later. Its seq, which the code goes by, is
 * counted on by every claim from the state that it carries on, so that two may have the same.
 */

#ifndef STATES
#define STATES 3		/* that are staged, by all attempts together */
#endif
#ifndef CLAIMS
#define CLAIMS 3		/* tries to claim, by all attempts together */
#endif
#ifndef LOST
#define LOST 1			/* answers of the store */
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef DELETES
#define DELETES 0
#endif
#ifndef CUTS
#define CUTS 0			/* of power, everywhere */
#endif

#ifndef SECOND			/* the machine of the second attempt, and of the third: */
#define SECOND 0
#endif
#ifndef THIRD			/* 0, 1, or 2: there is none */
#define THIRD 2
#endif

#define ATTEMPTS 3
#define BIT(n) (1 << (n))

mtype = { none, stored, conflict, unknown };

typedef Record {
	byte version;		/* 0: there is none; else it tells no more than VERSIONS_REUSED needs */
	byte claim;
	byte origin;		/* the claim that staged the state */
	byte seq;
	byte state;		/* 0: none yet */
	byte blob		/* where the state lies */
};

typedef Half {
	byte seq;		/* the header ... */
	byte state;
	byte payload		/* ... and the state whose bytes are there */
};

typedef Region {
	bool there;
	bit machine;
	bit turn;		/* the half that is written next */
	Half half[2]
};

typedef Attempt {
	bool begun, alive, killed;
	bool current;		/* the version that it names in a commit is the head's */
	byte version;		/* the same with versions that are reused */
	byte listed;		/* blobs that were there before its claim, ... */
	byte owned;		/* ... that it has put or taken over, and ... */
	byte doomed;		/* ... that it is about to delete */
	/* what was promised; the code knows nothing of it: */
	bit machine;
	byte claim;		/* while it may stage; ... */
	byte staged		/* ... the newest state whose write() has returned */
};

/* the store */
Record head, durable;		/* and what a power cut leaves of it */
Record late;			/* a request whose answer was lost, and which may yet take effect */
bool late_waits, late_current, late_claims;
bit late_machine;
byte late_need;
byte blobs;			/* a bit for each that is there */

/* the machines, and who runs there */
Region region[CLAIMS + 1];
Attempt a[ATTEMPTS];
byte claims, states;		/* so far */

/* what else may happen */
byte lost_left = LOST, kills_left = KILLS, deletes_left = DELETES, cuts_left = CUTS;

/* What was promised; the code knows nothing of it. */
byte newest_claim;		/* whose commit to claim came last; 0: the key was deleted */
byte ranks;
byte rank[CLAIMS + 1];		/* in which order claims were committed */
byte acknowledged;		/* the newest state that a flush has vouched for, ... */
byte deleted;			/* ... and that was not deleted on purpose */
byte spooled[2];		/* the newest that a killed process, not superseded, has left there */

Record nothing;
hidden byte i, h, w, used;	/* of no meaning from one step to the next */

inline copy(to, from) {
	to.version = from.version; to.claim = from.claim; to.origin = from.origin;
	to.seq = from.seq; to.state = from.state; to.blob = from.blob
}

#ifdef VERSIONS_REUSED
#define MATCHES(me) (a[me].version == head.version)
#define LATE_MATCHES (late.version == head.version)
#define COUNT_VERSION head.version++
#elif defined(NO_VERSION_IN_COMMIT)
#define MATCHES(me) true
#define LATE_MATCHES true
#define COUNT_VERSION head.version = 1
#else				/* unique: only the one who has just read or written knows it */
#define MATCHES(me) a[me].current
#define LATE_MATCHES late_current
#define COUNT_VERSION head.version = 1
#endif

#ifdef BLOBS
#define IS_THERE(n) (blobs & BIT(n))
#else
#define IS_THERE(n) true
#endif

inline nobody_is_current() {
	a[0].current = false; a[1].current = false; a[2].current = false;
	late_current = false
}

/* Every change of the head comes here. What may it become? */
inline put(new, claiming, where, then) {
	assert(claiming || new.claim == newest_claim);		/* no fenced writer stores */
	if
	:: head.version != 0 ->
		assert(new.state >= head.state);		/* a key never goes back */
		/* nor comes an older claim's state after a newer claim's */
		assert(new.state == head.state || rank[new.origin] >= rank[head.origin])
	:: else ->
		assert(new.state == 0)				/* nor back to life */
	fi;
	assert(new.state == 0 || IS_THERE(new.blob));	/* what a head names is there */
	new.version = head.version;
	copy(head, new);
	COUNT_VERSION;
	printf("head: state %d of claim %d, by claim %d\n", new.state, new.origin, new.claim);
	nobody_is_current();
	if
	:: claiming && new.claim != newest_claim ->
		newest_claim = new.claim;
		ranks++;
		rank[new.claim] = ranks;
		spooled[1 - where] = new.state;			/* superseded, there, and here */
		if						/* what came after its open() began */
		:: spooled[where] > then -> spooled[where] = then
		:: else
		fi
	:: else
	fi
}

/* Compare and swap, durable when it is answered. If the answer is lost it may have taken effect,
 * though not on the disk, or will, or never does.
 */
inline commit(new, claiming) {
	if
	:: MATCHES(me) -> put(new, claiming, machine, need); copy(durable, head);
		a[me].current = true; a[me].version = head.version; answer = stored
	:: MATCHES(me) && lost_left > 0 -> lost_left--; put(new, claiming, machine, need);
		answer = unknown
	:: !MATCHES(me) -> answer = conflict
	:: lost_left > 0 && !late_waits -> lost_left--;
		copy(late, new); late.version = a[me].version; late_current = a[me].current;
		late_waits = true; late_claims = claiming; late_machine = machine; late_need = need;
		answer = unknown
	fi
}

/* The newest state that a claim has staged on this machine, if its seq is higher. */
inline look_into(whose, than) {
	w = whose;
	if
	:: region[w].there && region[w].machine == machine ->
		h = (region[w].half[0].seq >= region[w].half[1].seq -> 0 : 1);
		if
		:: region[w].half[h].seq > than && region[w].half[h].seq > new.seq ->
			new.seq = region[w].half[h].seq; new.state = region[w].half[h].state;
			new.origin = w;
			assert(region[w].half[h].payload == new.state)	/* nothing torn is promoted */
		:: else
		fi
	:: else
	fi
}

/* What a claim carries on: what the head's claim has staged here, else what that claim has whose
 * state the head still holds, else the head's state.
 */
inline newest() {
	copy(new, nothing);
#ifdef NO_CLAIM_CHECK
	for (i : 1 .. CLAIMS) { look_into(i, found.seq) }
#else
	if
	:: found.version != 0 ->
		look_into(found.claim, found.seq);
		if
		:: new.state == 0 -> look_into(found.origin, found.seq)
		:: else
		fi
	:: else
	fi;
#endif
	promoted = new.state != 0;
	if
	:: !promoted && found.version != 0 -> copy(new, found)
	:: else
	fi
}

#ifdef BLOBS
inline put_blob() {		/* under a name that is nowhere */
	used = blobs | BIT(0) | BIT(late.blob) | a[0].listed | a[0].owned | a[0].doomed |
		a[1].listed | a[1].owned | a[1].doomed | a[2].listed | a[2].owned | a[2].doomed;
	new.blob = 1;
	do
	:: used & BIT(new.blob) -> new.blob++
	:: else -> break
	od;
	assert(new.blob < 8);
	used = 0;
	blobs = blobs | BIT(new.blob)
}

inline doom(which) { a[me].doomed = a[me].doomed | (which) }
#else
inline put_blob() { skip }
inline doom(which) { skip }
#endif

inline remove(c) {
	region[c].there = false; region[c].machine = 0; region[c].turn = 0;
	region[c].half[0].seq = 0; region[c].half[0].state = 0; region[c].half[0].payload = 0;
	region[c].half[1].seq = 0; region[c].half[1].state = 0; region[c].half[1].payload = 0
}

inline vouch_for(it) {		/* flush() returns */
	printf("attempt %d has stored state %d\n", me, it);
	if
	:: it > acknowledged && it > deleted -> acknowledged = it
	:: else
	fi
}

inline collect() { blobs = blobs & ~a[me].doomed; a[me].doomed = 0 }

proctype attempt(byte me; bit machine) {
	Record found, new;
	mtype answer = none;
	byte need;
	byte mine, tried;		/* the claim; that of a try whose answer was lost */
	byte seq, state, safe;		/* the newest staged; the newest stored */
	byte last, last_blob;		/* the state that was put last, and its blob */
	byte regions;			/* there before the claim */
	bool promoted, fenced;
	bit t;
	{
		d_step { me == 0 || a[0].begun -> a[me].begun = true;	/* the first begins */
			a[me].alive = true; a[me].machine = machine }
open:		skip;
		d_step {		/* read, look around, and commit what comes of it */
			copy(found, head);
			a[me].current = true; a[me].version = head.version;
			printf("attempt %d opens\n", me);
			a[me].listed = blobs;
			regions = 0;
			for (i : 1 .. CLAIMS) {
				if
				:: region[i].there && region[i].machine == machine ->
					regions = regions | BIT(i)
				:: else
				fi
			}
			if
			:: tried != 0 && found.version != 0 && found.claim == tried ->
				copy(new, found)	/* it did take effect: commit it once more */
			:: else ->
				tried = 0;
				need = (acknowledged > spooled[machine] -> acknowledged : spooled[machine]);
				newest();
				if
				:: promoted -> put_blob()
				:: else
				fi
			fi;
			i = 0; h = 0; w = 0
		}
		if
		:: tried != 0
		:: d_step { tried == 0 && claims < CLAIMS -> claims++; mine = claims }
		:: tried == 0 && claims == CLAIMS -> goto end
		fi;
		atomic {
			new.claim = mine;
#ifdef CLAIM_THEN_PROMOTE
			i = new.blob;
			if
			:: promoted -> copy(new, found); new.claim = mine
			:: else
			fi;
#endif
			commit(new, true)
		}
		if
		:: answer == conflict -> answer = none; goto open
		:: answer == unknown -> d_step { tried = mine; answer = none } goto open
		:: answer == stored
		fi;
		d_step {
			doom(a[me].listed & ~BIT(new.blob));
			a[me].listed = 0;
#ifdef CLAIM_THEN_PROMOTE
			newest();
			new.claim = mine;
			if
			:: promoted -> put_blob()
			:: else
			fi;
#endif
			for (i : 1 .. CLAIMS) {
				if
				:: regions & BIT(i) -> remove(i)
				:: else
				fi
			}
			i = 0; h = 0; w = 0
		}
#ifdef CLAIM_THEN_PROMOTE
		if
		:: promoted ->
			atomic { commit(new, false) }
			if
			:: answer != stored -> goto end
			:: else
			fi
		:: else
		fi;
#endif
		d_step {
			printf("attempt %d reads state %d, claim %d\n", me, new.state, mine);
			assert(new.state >= need);	/* what it reads; the promise of open() */
			region[mine].there = true; region[mine].machine = machine;
			seq = new.seq; state = new.state; safe = state;
			last = state; last_blob = new.blob;
			a[me].owned = BIT(last_blob) & ~BIT(0);
			a[me].claim = mine; a[me].staged = state;
			copy(found, nothing); copy(new, nothing);
			regions = 0; tried = 0; need = 0; promoted = false; answer = none
		}

		do
		:: d_step {			/* write() */
				states < STATES ->
				states++; state = states; seq++;
				t = region[mine].turn; region[mine].turn = 1 - t;
#ifdef HEADER_FIRST
				region[mine].half[t].seq = seq; region[mine].half[t].state = state
#else
				region[mine].half[t].payload = state
#endif
			}
			d_step {
				region[mine].half[t].payload = state;
				region[mine].half[t].seq = seq; region[mine].half[t].state = state;
				a[me].staged = state; t = 0;
				printf("attempt %d has staged state %d\n", me, state)
			}

		:: safe != state ->		/* the writer commits the newest */
			atomic {
				if
				:: last == state -> new.blob = last_blob	/* was put before */
				:: else -> d_step {
					put_blob();
					a[me].owned = a[me].owned | BIT(new.blob) }
				fi;
				last = state; last_blob = new.blob;
				new.claim = mine; new.origin = mine; new.seq = seq; new.state = state;
				commit(new, false);
#ifdef BLOBS_DELETED_AFTER_UNKNOWN
				if
				:: answer == unknown -> blobs = blobs & ~BIT(last_blob)
				:: else
				fi;
#endif
				copy(new, nothing)
			}
			d_step {
				if
				:: answer == stored ->
					safe = last;
					vouch_for(safe);
					doom(a[me].owned & ~BIT(last_blob));
					a[me].owned = BIT(last_blob)
				:: else ->	/* read back */
					fenced = head.version == 0 || head.claim != mine;
					a[me].current = true; a[me].version = head.version;
#ifdef NOT_COMMITTED_ONCE_MORE
					if
					:: !fenced && head.state == last ->
						safe = last;
						vouch_for(safe)
					:: else
					fi;
#endif
				fi;
				answer = none
			}
			if
			:: fenced -> break
			:: else
			fi

		:: d_step { a[me].doomed != 0 -> collect() }

		:: d_step { deletes_left > 0 && MATCHES(me) ->
			deletes_left--;
			deleted = head.state;
			printf("attempt %d deletes the key\n", me);
			doom(blobs);
			copy(head, nothing); copy(durable, nothing);
			nobody_is_current();
			newest_claim = 0; acknowledged = 0; spooled[0] = 0; spooled[1] = 0 }
			break

		:: safe == state -> break	/* leave */
		od;
		skip;
		d_step { remove(mine); a[me].claim = 0 }
		if
		:: d_step { a[me].doomed != 0 -> collect() }
		:: true
		fi
	} unless { a[me].killed };
end:	skip;
	d_step {
		a[me].alive = false; a[me].killed = false; a[me].current = false; a[me].version = 0;
		a[me].listed = 0; a[me].owned = 0; a[me].doomed = 0;
		a[me].machine = 0; a[me].claim = 0; a[me].staged = 0;
		copy(found, nothing); copy(new, nothing); answer = none;
		need = 0; mine = 0; tried = 0; seq = 0; state = 0; safe = 0; last = 0; last_blob = 0;
		regions = 0; promoted = false; fenced = false; t = 0
	}
}

#define KILL(n) d_step { kills_left > 0 && a[n].alive && !a[n].killed -> \
		kills_left--; \
		printf("attempt %d is killed\n", n); \
		a[n].killed = true; \
		if \
		:: a[n].claim != 0 && a[n].claim == newest_claim && \
		   a[n].staged > spooled[a[n].machine] -> spooled[a[n].machine] = a[n].staged \
		:: else \
		fi }

/* What comes late, and what comes down. */
proctype world() {
end:	do
	:: d_step { late_waits ->
		if
		:: LATE_MATCHES -> put(late, late_claims, late_machine, late_need)
		:: else
		fi;
		late_waits = false; late_current = false; late_claims = false; late_machine = 0;
		late_need = 0;
		copy(late, nothing) }
	:: KILL(0)
	:: KILL(1)
	:: KILL(2)
	:: d_step { cuts_left > 0 ->
		cuts_left--;
		printf("the power is cut\n");
		for (i : 0 .. ATTEMPTS - 1) {
			if
			:: a[i].alive -> a[i].killed = true
			:: else
			fi
		}
		for (i : 1 .. CLAIMS) { remove(i) }	/* of another boot */
		i = 0;
		late_waits = false; late_current = false; late_claims = false; late_machine = 0;
		late_need = 0;
		copy(late, nothing);
		copy(head, durable);
		nobody_is_current();
		assert(head.state >= acknowledged);	/* what flush() had vouched for is there */
		newest_claim = head.claim;
		spooled[0] = 0; spooled[1] = 0 }
	od
}

init {
	atomic {
		run world();
		run attempt(0, 0);
		run attempt(1, SECOND);
		if
		:: THIRD < 2 -> run attempt(2, THIRD)
		:: else
		fi
	}
}
