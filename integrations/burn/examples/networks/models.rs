//! The networks, their losses and their scores.

use burn::module::Module;
use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::pool::{AdaptiveAvgPool2dConfig, MaxPool2dConfig};
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::Result;
use super::data::{CLASSES, Images, Split, Text};

/// Network and its data.
pub trait Task {
    type Model: Module;

    /// Name of the network and of the data.
    fn name(&self) -> String;
    fn init(&self, device: &Device) -> Self::Model;
    /// Number of samples in an epoch.
    fn samples(&self) -> usize;
    /// Mean loss over some training samples.
    fn loss(&self, model: &Self::Model, samples: &[usize], device: &Device) -> Tensor<1>;
    /// Score of a model without autodiff on the test data.
    fn score(&self, model: &Self::Model, device: &Device) -> Result<f64>;
    /// Unit of the score.
    fn unit(&self) -> &'static str;
    /// Whether a larger score is better.
    fn rises(&self) -> bool;
}

fn conv(channels: [usize; 2], stride: usize, device: &Device) -> Conv2d {
    let config = Conv2dConfig::new(channels, [3, 3]).with_stride([stride, stride]).with_bias(false);
    config.with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init(device)
}

fn norm(channels: usize, device: &Device) -> BatchNorm {
    BatchNormConfig::new(channels).init(device)
}

/// Two convolutions with batch norms and pooling, and a dense layer.
#[derive(Module, Debug)]
pub struct Cnn {
    conv1: Conv2d,
    norm1: BatchNorm,
    conv2: Conv2d,
    norm2: BatchNorm,
    head: Linear,
}

/// Residual block with two convolutions.
#[derive(Module, Debug)]
struct Block {
    conv1: Conv2d,
    norm1: BatchNorm,
    conv2: Conv2d,
    norm2: BatchNorm,
    around: Option<Conv2d>,
}

/// A convolution, three residual blocks, and a dense layer: ResNet-8 with few channels (He et al., arXiv:1512.03385, section 4.2).
#[derive(Module, Debug)]
pub struct ResNet {
    stem: Conv2d,
    norm: BatchNorm,
    blocks: Vec<Block>,
    head: Linear,
}

/// Classifier of images.
pub trait Classifier: Module {
    const NAME: &'static str;
    fn new(side: usize, device: &Device) -> Self;
    fn forward(&self, images: Tensor<4>) -> Tensor<2>;
}

impl Classifier for Cnn {
    const NAME: &'static str = "CNN";

    fn new(side: usize, device: &Device) -> Self {
        Cnn {
            conv1: conv([1, 8], 1, device),
            norm1: norm(8, device),
            conv2: conv([8, 16], 1, device),
            norm2: norm(16, device),
            head: LinearConfig::new(16 * (side / 4) * (side / 4), CLASSES).init(device),
        }
    }

    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let pool = MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init();
        let x = pool.forward(relu(self.norm1.forward(self.conv1.forward(images))));
        let x = pool.forward(relu(self.norm2.forward(self.conv2.forward(x))));
        self.head.forward(x.flatten(1, 3))
    }
}

impl Block {
    fn new(channels: [usize; 2], stride: usize, device: &Device) -> Self {
        let around = Conv2dConfig::new(channels, [1, 1]).with_stride([stride, stride]).with_bias(false);
        Block {
            conv1: conv(channels, stride, device),
            norm1: norm(channels[1], device),
            conv2: conv([channels[1]; 2], 1, device),
            norm2: norm(channels[1], device),
            around: (stride > 1).then(|| around.init(device)),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = relu(self.norm1.forward(self.conv1.forward(x.clone())));
        let y = self.norm2.forward(self.conv2.forward(y));
        let x = match &self.around {
            Some(around) => around.forward(x),
            None => x,
        };
        relu(x + y)
    }
}

impl Classifier for ResNet {
    const NAME: &'static str = "residual net";

    fn new(_side: usize, device: &Device) -> Self {
        ResNet {
            stem: conv([1, 8], 1, device),
            norm: norm(8, device),
            blocks: vec![
                Block::new([8, 8], 1, device),
                Block::new([8, 16], 2, device),
                Block::new([16, 32], 2, device),
            ],
            head: LinearConfig::new(32, CLASSES).init(device),
        }
    }

    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = relu(self.norm.forward(self.stem.forward(images)));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
        let x = AdaptiveAvgPool2dConfig::new([1, 1]).init().forward(x);
        self.head.forward(x.flatten(1, 3))
    }
}

/// Classifier and its images.
pub struct Classification<'a, C> {
    pub images: &'a Images,
    classifier: std::marker::PhantomData<C>,
}

impl<'a, C> Classification<'a, C> {
    pub fn new(images: &'a Images) -> Self {
        Classification { images, classifier: std::marker::PhantomData }
    }

    /// Uploads some rows and their classes. All of MNIST at once would not fit into one buffer where bindings are limited to 128 MiB.
    fn upload(&self, split: &Split, rows: &[usize], device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
        let side = self.images.side;
        let pixels = side * side;
        let x: Vec<f32> = rows.iter().flat_map(|row| &split.x[row * pixels..(row + 1) * pixels]).copied().collect();
        let y: Vec<i32> = rows.iter().map(|&row| split.y[row]).collect();
        (
            Tensor::from_data(TensorData::new(x, [rows.len(), 1, side, side]), device),
            Tensor::from_data(TensorData::new(y, [rows.len()]), device),
        )
    }
}

impl<C: Classifier> Task for Classification<'_, C> {
    type Model = C;

    fn name(&self) -> String {
        format!("{} on {}", C::NAME, self.images.name)
    }

    fn init(&self, device: &Device) -> C {
        C::new(self.images.side, device)
    }

    fn samples(&self) -> usize {
        self.images.train.y.len()
    }

    fn loss(&self, model: &C, samples: &[usize], device: &Device) -> Tensor<1> {
        let (x, y) = self.upload(&self.images.train, samples, device);
        CrossEntropyLossConfig::new().init(device).forward(model.forward(x), y)
    }

    fn score(&self, model: &C, device: &Device) -> Result<f64> {
        let rows: Vec<usize> = (0..self.images.test.y.len()).collect();
        let mut right = 0;
        for rows in rows.chunks(500) {
            let (x, y) = self.upload(&self.images.test, rows, device);
            let found = model.forward(x).argmax(1).flatten::<1>(0, 1);
            right += found.equal(y).int().sum().into_scalar::<i32>();
        }
        Ok(100.0 * f64::from(right) / rows.len() as f64)
    }

    fn unit(&self) -> &'static str {
        "% right"
    }

    fn rises(&self) -> bool {
        true
    }
}

/// Two-layer transformer over characters.
#[derive(Module, Debug)]
pub struct Transformer {
    embedding: Embedding,
    positions: Embedding,
    encoder: TransformerEncoder,
    head: Linear,
}

impl Transformer {
    fn forward(&self, characters: Tensor<2, Int>) -> Tensor<3> {
        let ([batch, length], device) = (characters.dims(), characters.device());
        let positions = Tensor::<1, Int>::arange(0..length as i64, &device).unsqueeze::<2>();
        let x = self.embedding.forward(characters) + self.positions.forward(positions);
        let input = TransformerEncoderInput::new(x).mask_attn(generate_autoregressive_mask(batch, length, &device));
        self.head.forward(self.encoder.forward(input))
    }
}

/// Prediction of the next character of a text.
pub struct Prediction<'a> {
    pub text: &'a Text,
    /// Number of characters in a sample.
    pub length: usize,
}

impl Prediction<'_> {
    fn loss_of(&self, model: &Transformer, text: &[i32], starts: &[usize], device: &Device) -> Tensor<1> {
        let characters = |shift: usize| {
            let windows = starts.iter().flat_map(|start| &text[start + shift..start + shift + self.length]);
            windows.copied().collect::<Vec<i32>>()
        };
        let (batch, length) = (starts.len(), self.length);
        let x = Tensor::from_data(TensorData::new(characters(0), [batch, length]), device);
        let y = Tensor::from_data(TensorData::new(characters(1), [batch * length]), device);
        let logits = model.forward(x).reshape([batch * length, self.text.vocabulary]);
        CrossEntropyLossConfig::new().init(device).forward(logits, y)
    }
}

impl Task for Prediction<'_> {
    type Model = Transformer;

    fn name(&self) -> String {
        format!("transformer on {}", self.text.name)
    }

    fn init(&self, device: &Device) -> Transformer {
        const WIDTH: usize = 64;
        let encoder = TransformerEncoderConfig::new(WIDTH, 4 * WIDTH, 4, 2).with_norm_first(true).with_dropout(0.0);
        Transformer {
            embedding: EmbeddingConfig::new(self.text.vocabulary, WIDTH).init(device),
            positions: EmbeddingConfig::new(self.length, WIDTH).init(device),
            encoder: encoder.init(device),
            head: LinearConfig::new(WIDTH, self.text.vocabulary).init(device),
        }
    }

    fn samples(&self) -> usize {
        (self.text.train.len() - 1) / self.length
    }

    fn loss(&self, model: &Transformer, samples: &[usize], device: &Device) -> Tensor<1> {
        let starts: Vec<usize> = samples.iter().map(|sample| sample * self.length).collect();
        self.loss_of(model, &self.text.train, &starts, device)
    }

    fn score(&self, model: &Transformer, device: &Device) -> Result<f64> {
        let windows = (self.text.test.len() - 1) / self.length;
        let starts: Vec<usize> = (0..windows).map(|window| window * self.length).collect();
        let mut nats = 0.0;
        for starts in starts.chunks(64) {
            let loss = self.loss_of(model, &self.text.test, starts, device).into_scalar::<f32>();
            nats += f64::from(loss) * starts.len() as f64;
        }
        Ok(nats / windows as f64 / std::f64::consts::LN_2)
    }

    fn unit(&self) -> &'static str {
        "bits per character"
    }

    fn rises(&self) -> bool {
        false
    }
}
