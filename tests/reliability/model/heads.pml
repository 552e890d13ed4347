/* The heads of one key in `file:`: numbered files, of which the highest is the head.
 *
 * Processes load, commit and delete, and are paused between any two system calls for as long as
 * may be; one that is killed is one that is paused for ever. docs/reliability.md maps each part to the
 * code. test_model.py checks it to completion, as it is and with one rule less, which must break
 * a guarantee.
 */

#ifndef WRITERS
#define WRITERS 3
#endif
#ifndef COMMITS
#define COMMITS 4		/* that are begun, deletions included, by all together */
#endif
#define NUMBERS 6
#define BIT(n) (1 << (n))

byte names;			/* a bit for each number that has a file */
byte tombstones;		/* those that say that the key was deleted */
byte commit_of[NUMBERS + 1];	/* which commit made it */
byte begun;

/* What was promised; the code knows nothing of it. */
byte answered;			/* numbers that somebody was told */
byte head, head_commit;		/* the highest of them */

hidden byte top;

inline highest() {
	top = NUMBERS;
	do
	:: top > 0 && !(names & BIT(top)) -> top--
	:: else -> break
	od
}

inline unlink(n) { names = names & ~BIT(n); tombstones = tombstones & ~BIT(n); commit_of[n] = 0 }

proctype writer() {
	byte expect, known;	/* the version that it goes on from, and whose that was */
	byte number, mine, old, seen;
	bool deleting, conflict;
	bool replaced;		/* what was promised, as below */

	do
	:: d_step {		/* load: the highest name */
		begun < COMMITS -> highest(); expect = top; known = commit_of[top]; top = 0;
		printf("writer %d reads %d\n", _pid, expect);
		/* it shows no less than somebody was told is stored */
		assert(expect > head || (expect == head && known == head_commit)) }
		do
		:: d_step { begun < COMMITS ->
			begun++;
			mine = begun;
			number = expect + 1;
			assert(number <= NUMBERS) }
			if
			:: deleting = false
			:: expect != 0 && !(tombstones & BIT(expect)) -> deleting = true
			fi;
			d_step {	/* link: it makes the name, or finds it there */
				conflict = (names & BIT(number)) != 0;
				highest();
				replaced = top == expect && commit_of[top] == known;
				printf("writer %d links %d: %d\n", _pid, number, !conflict);
				top = 0;
				if
				:: !conflict ->
					names = names | BIT(number);
					commit_of[number] = mine;
					if
					:: deleting -> tombstones = tombstones | BIT(number)
					:: else
					fi
				:: else
				fi
			}
			if
			:: !conflict ->
				d_step {	/* list */
					seen = names;
#ifndef NO_LOOK_AFTER_LINK
					highest();
					conflict = top != number;
#ifdef WITHDRAWN
					conflict = conflict || (expect != 0 && !(names & BIT(expect)));
#endif
					assert(conflict || expect == 0 || (names & BIT(expect)));
					top = 0
#endif
				}
#ifdef WITHDRAWN
				if
				:: d_step { conflict -> unlink(number) }
				:: else
				fi
#endif
			:: else
			fi;
			if
			:: conflict -> break
			:: else
			fi;
			d_step {	/* the answer */
				printf("writer %d is answered %d\n", _pid, number);
				assert(!(answered & BIT(number)));	/* no version is used twice */
				assert(replaced);	/* it has replaced the head, the one that it knew of */
				answered = answered | BIT(number);
				if
				:: number > head -> head = number; head_commit = mine
				:: else			/* others have built upon it before it heard */
				fi;
				expect = number; known = mine;
				old = 1
			}
			do		/* then goes what nobody is about to read, one by one */
			:: d_step { old + 1 < number || (deleting && old + 1 == number) ->
				printf("writer %d unlinks %d\n", _pid, old);
				if
				:: seen & BIT(old) -> unlink(old)
				:: else
				fi;
				old++ }
			:: else -> break
			od;
#ifdef HIGHEST_COLLECTED
			if
			:: d_step { deleting -> unlink(number); answered = 0; head = 0; head_commit = 0 }
			:: else
			fi;
#endif
			if
			:: deleting -> break
			:: else
			fi;
			d_step { number = 0; mine = 0; old = 0; seen = 0; replaced = false }
		:: break
		od;
		skip;
		d_step { expect = 0; known = 0; number = 0; mine = 0; old = 0; seen = 0;
			deleting = false; conflict = false; replaced = false }
	:: begun == COMMITS -> break
	od
}

init {
	byte n;
	atomic {
		for (n : 1 .. WRITERS) { run writer() }
	}
}
