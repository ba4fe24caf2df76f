// An engine whose listener hands out connections that a test has wrapped. Enters: an engine, what wraps a connection.
// Leaves: an engine.
import type { Connection, Engine } from '../../transport/types.ts'

export const wrapEngine = (engine: Engine, wrap: (connection: Connection) => Connection): Engine => ({
  name: engine.name,
  available: () => engine.available(),
  connect: options => engine.connect(options),
  async listen(options) {
    const listener = await engine.listen(options)
    return {
      address: listener.address,
      close: () => listener.close(),
      async accept() {
        const connection = await listener.accept()
        return connection && wrap(connection)
      },
    }
  },
})
