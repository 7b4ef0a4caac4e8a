// One thing at a time, and of what is asked for meanwhile the newest: what lies between is of no use to anybody. Pure.

/** Does `act` for what is asked, after what it does already; the promise is kept when nothing waits to be done. */
export function latest<T>(act: (asked: T) => Promise<void>): (asked: T) => Promise<void> {
  let waiting: { asked: T } | undefined;
  let busy: Promise<void> | undefined;
  const work = async (): Promise<void> => {
    while (waiting) {
      const { asked } = waiting;
      waiting = undefined;
      try {
        await act(asked);
      } catch (failure) {
        // Unless something else is wanted by now.
        if (!waiting) throw failure;
      }
    }
  };
  return (asked) => {
    waiting = { asked };
    busy ??= work().finally(() => (busy = undefined));
    return busy;
  };
}
