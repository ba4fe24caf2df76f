// godwit demo: hands over to cli/demo.ts, with all its words.
import { command } from '../command.ts'

export const demo = command({
  name: 'demo',
  summary: 'boot a Linux guest on this machine and migrate it A -> B -> A over an emulated link',
  details:
    'Starts a gateway, two nodes and a link of 100 Mbit/s and 40 ms, and proves that the guest was not harmed. npm run demo also does the set-up.',
  isPassThrough: true,
  examples: ['npm run demo', 'godwit demo'],
  run: async ({ args }) => {
    // The path is a value, so that the command line stands without the demo.
    const file = '../demo.ts'
    const module = (await import(file)) as { demo(args: string[]): Promise<number> }
    return await module.demo(args)
  },
})
