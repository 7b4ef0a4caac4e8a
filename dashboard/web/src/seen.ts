// A page that nobody sees keeps no node awake.

/** How long it is listened for when nobody sees it. */
export const UNSEEN_MS = 60_000;

/** What to do when it may have changed whether the page is seen: `stop` a while after it no longer is, `go` when it is again. */
export function whileSeen(isSeen: () => boolean, stop: () => void, go: () => void): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let stopped = false;
  return () => {
    clearTimeout(timer);
    if (!isSeen()) {
      timer = setTimeout(() => {
        stopped = true;
        stop();
      }, UNSEEN_MS);
    } else if (stopped) {
      stopped = false;
      go();
    }
  };
}
