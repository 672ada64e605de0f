"""RMSprop against vanishing gradients, the program this project started from: Keras 3 on TensorFlow.

A network 10 -> 10 (ReLU) -> 1 learns random data by mean squared error with RMSprop, in a loop written by hand.
``article_rmsprop_torch.py`` is the same program in PyTorch with unvanish's RMSprop.

    pip install "unvanish[keras]" && python examples/article_rmsprop.py
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # the loop below uses TensorFlow's GradientTape
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

SAMPLES, FEATURES, EPOCHS = 100, 10, 100


def create_model() -> keras.Model:
    """10 inputs, 10 ReLU units, one output."""
    return keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(10, activation="relu"), keras.layers.Dense(1)]
    )


def rmsprop_optimizer(
    learning_rate: float = 0.001, decay_rate: float = 0.9, epsilon: float = 1e-8
) -> keras.optimizers.Optimizer:
    """RMSprop with the article's spelling: Keras has no ``decay_rate``, it calls it ``rho``."""
    return keras.optimizers.RMSprop(learning_rate=learning_rate, rho=decay_rate, epsilon=epsilon)


def train(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, x: tf.Tensor, y: tf.Tensor, epochs: int = EPOCHS
) -> list[float]:
    """Full-batch steps; prints and returns the loss before each."""
    losses = []
    for epoch in range(1, epochs + 1):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(y - model(x, training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        losses.append(float(loss))
        print(f"Epoch {epoch}, Loss: {losses[-1]}")
    return losses


def main() -> None:
    """Train, then predict one new sample."""
    keras.utils.set_random_seed(0)
    model = create_model()
    train(model, rmsprop_optimizer(), tf.random.normal((SAMPLES, FEATURES)), tf.random.normal((SAMPLES, 1)))
    print("Prediction:", float(model(tf.random.normal((1, FEATURES)))[0, 0]))


if __name__ == "__main__":
    main()
