// A thread that says which input it has and then never ends: what the watchdog is for.
import { workerData } from 'node:worker_threads'
import { SHARED_HEAD_BYTES } from '../../fuzz/shared.ts'

const { shared } = workerData as { shared: SharedArrayBuffer }
new Uint8Array(shared, SHARED_HEAD_BYTES).set([1, 2, 3])
Atomics.store(new Int32Array(shared, 0, 2), 1, 3)
Atomics.add(new Int32Array(shared, 0, 2), 0, 1)
for (;;) Atomics.load(new Int32Array(shared, 0, 2), 0)
