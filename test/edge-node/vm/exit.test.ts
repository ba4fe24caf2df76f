// What is said about a QEMU that has ended: how it ended comes first, then what it wrote; lines that are no cause are
// left out.
import { exitError } from '../../../edge-node/vm/exit.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('edge-node/vm: exit')

const NOISE =
  'qemu-system-x86_64: warning: not removing PID file on exit: cannot resolve PID file path: qemu.pid: No such file or directory'

test('how it ended comes first, then its last lines', () => {
  const said = exitError('QEMU of web-1', { code: 1, signal: null, logTail: 'qemu-system-x86_64: no such disk' })
  assert.equal(
    [said.code, said.message],
    ['QEMU_EXITED', 'QEMU of web-1 ended with exit code 1; last lines of its log:\nqemu-system-x86_64: no such disk'],
  )
  assert.is(exitError('QEMU of web-1', { code: null, signal: 'SIGKILL', logTail: '' }).message, 'QEMU of web-1 ended by SIGKILL')
})

test('a warning about its PID file is no cause', () => {
  const of = (logTail: string) => exitError('QEMU of web-1', { code: null, signal: null, logTail }).message
  assert.is(of(NOISE), 'QEMU of web-1 ended')
  assert.is(
    of(`${NOISE}\nqemu-system-x86_64: terminating on signal 15`),
    'QEMU of web-1 ended; last lines of its log:\nqemu-system-x86_64: terminating on signal 15',
  )
})

test.run()
