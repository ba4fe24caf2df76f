// Memory shared by the fuzzing thread and its watchdog: u32 inputs so far | u32 length of the current input | u32 'end'
// | the first bytes of the input. Always holds: the bytes are written before the input runs, so they can be read when
// the thread hangs or has ended.

export const SHARED_HEAD_BYTES = 12
const INPUT_BYTES_MAX = 2 * 1024 * 1024

export const createShared = (): SharedArrayBuffer => new SharedArrayBuffer(SHARED_HEAD_BYTES + INPUT_BYTES_MAX)

/** For the fuzzing thread: called before each input. */
export function inputTeller(shared: SharedArrayBuffer): (input: Uint8Array) => void {
  const head = new Int32Array(shared, 0, 2)
  const bytes = new Uint8Array(shared, SHARED_HEAD_BYTES)
  return input => {
    bytes.set(input.subarray(0, bytes.length))
    Atomics.store(head, 1, input.length)
    Atomics.add(head, 0, 1)
  }
}

/** For the watchdog: asks the thread to run no further input. */
export const askToEnd = (shared: SharedArrayBuffer): void => void Atomics.store(new Int32Array(shared, 0, 3), 2, 1)

/** For the fuzzing thread. */
export const isAskedToEnd = (shared: SharedArrayBuffer): boolean => Atomics.load(new Int32Array(shared, 0, 3), 2) === 1

/** For the watchdog. */
export function readShared(shared: SharedArrayBuffer): { count: number; input: () => Uint8Array } {
  const head = new Int32Array(shared, 0, 2)
  return { count: Atomics.load(head, 0), input: () => new Uint8Array(shared, SHARED_HEAD_BYTES).slice(0, Atomics.load(head, 1)) }
}
