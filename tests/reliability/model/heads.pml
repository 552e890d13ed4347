/* The heads of one key in `file:`: numbered files, of which the highest is the head.
 *
 * Processes load, commit and delete, and are paused between any two system calls for as long as
 * may be; one that is killed is one that is paused for ever. docs/model.md maps each part to the
 * code. Checked to completion as it is, and with one rule less, which must break a guarantee.
 */

#ifndef WRITERS
#define WRITERS 3
#endif
#ifndef COMMITS
#define COMMITS 4		/* that are begun, deletions included, by all together */
#endif
#define NUMBERS 6
#define BIT(n) (1 << (n))

short names;			/* a bit for each number that has a file */
byte commit_of[NUMBERS + 2];	/* which commit made it */
short tombstones;		/* of these, the ones that say that the key was deleted */
byte begun;

/* What was promised; the code knows nothing of it. */
short answered;			/* numbers that a commit was told to have got */
byte head;			/* the highest of them */
byte head_commit;

inline highest() {
	top = NUMBERS + 1;
	do
	:: top > 0 && !(names & BIT(top)) -> top--
	:: else -> break
	od
}

proctype writer() {
	byte expect, read;	/* the version it goes on from, and whose file that was */
	byte number, mine, top, old;
	bool deleting, conflict;
	short seen;

	do
	:: d_step {		/* load: the highest name, and what it holds */
		begun < COMMITS;
		highest();
		expect = top; read = commit_of[top];
		/* of a file that has its name, the reader sees what the last one who was answered wrote */
		assert(head == 0 || top > head || (top == head && read == head_commit));
		top = 0 }
	   do
	   :: d_step { begun < COMMITS ->
		begun++; mine = begun;
		if
		:: expect != 0 && (tombstones & BIT(expect)) -> deleting = false
		:: else -> skip
		fi }
	      if
	      :: deleting = false
	      :: d_step { expect != 0 && !(tombstones & BIT(expect)) -> deleting = true }
	      fi;
	      d_step {		/* link; the name is made in one step, or is there */
		number = expect + 1;
		assert(number <= NUMBERS);
		conflict = (names & BIT(number)) != 0;
		if
		:: !conflict ->
			names = names | BIT(number);
			commit_of[number] = mine;
			if
			:: deleting -> tombstones = tombstones | BIT(number)
			:: else -> tombstones = tombstones & ~BIT(number)
			fi
		:: else
		fi }
#ifndef NO_LOOK_AFTER_LINK
	      d_step {		/* list */
		seen = names;
		highest();
		conflict = conflict || top != number || (expect != 0 && !(names & BIT(expect)));
		top = 0 }
	      if
	      :: conflict && commit_of[number] == mine -> d_step {
		names = names & ~BIT(number); commit_of[number] = 0 }
	      :: else
	      fi;
#else
	      seen = names;
#endif
	      if
	      :: conflict -> break
	      :: else
	      fi;
	      d_step {		/* the answer */
		assert(!(answered & BIT(number)));	/* no version is used twice */
		assert(number > head);			/* nor does one go backwards */
		assert(expect == 0 || expect == head);	/* it has replaced the head, ... */
		assert(read == head_commit || (tombstones & BIT(expect)) || expect == 0); /* ... that it knew */
		answered = answered | BIT(number);
		head = number; head_commit = mine }
	      old = 1;		/* then what nobody needs any more goes, one by one */
	      do
	      :: old < expect || (deleting && old == expect && expect != 0) ->
		d_step {
			if
			:: seen & BIT(old) -> names = names & ~BIT(old); commit_of[old] = 0
			:: else
			fi;
			old++ }
	      :: else -> break
	      od;
#ifdef HIGHEST_COLLECTED
	      if
	      :: deleting -> d_step { names = names & ~BIT(number); commit_of[number] = 0;
			answered = 0; head = 0; head_commit = 0 }
	      :: else
	      fi;
#endif
	      d_step { expect = number; read = mine; mine = 0; number = 0; old = 0; seen = 0 }
	      if
	      :: deleting -> deleting = false; break
	      :: else
	      fi
	   :: break
	   od;
	   d_step { expect = 0; read = 0; mine = 0; number = 0; old = 0; seen = 0; conflict = false;
		deleting = false }
	:: break
	od
}

init {
	byte n;
	atomic {
		for (n : 1 .. WRITERS) { run writer() }
	}
}
